"""What `tastemaker evaluate` finds out: scores through the journal, metrics, lines, plots."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..wording import counted
from .options import ScorerOptions, load_from_options, with_scorer

if TYPE_CHECKING:
    from PIL import Image

    from ..preferences.comparisons import Comparisons
    from ..preferences.evaluation import Measured
    from .scoring import Scores


class How(NamedTuple):
    """What the options ask for."""

    part: str | None
    voter: str | None
    tau: float | None
    calibration: Path | None
    distance_by: str | None
    columns: Mapping[str, Any]  # of `read_ratings`
    journal: Path | None
    retry_errors: bool
    unseen: bool
    bootstrap: Mapping[str, int]  # rounds, seed


class Evaluated(NamedTuple):
    """What is printed, and what it was made from."""

    lines: list[str]
    tables: dict[str, Mapping[str, Measured]]
    details: dict[str, Any]  # for --json
    plots: dict[str, Image.Image]
    images: list[Path]
    scores: Scores


def on_comparisons(file: Path, options: ScorerOptions, how: How) -> Evaluated:
    """A scorer on a file of comparisons."""
    from ..preferences.evaluation import differences, evaluate_comparisons
    from ..preferences.plots import pair_plots
    from .judged import read_part, scores_of_images

    comparisons, called = read_part(file, how.part, how.voter)
    comparisons = _of_two(comparisons)
    comparisons, trained = _without_training(comparisons, options, how.unseen)
    called += ", unseen images" if how.unseen else ""
    scores = scores_of_images(comparisons.images, options, how.journal, how.retry_errors)
    known = {row.path: row.score for row in scores.rows}
    kept, difference = differences(known, comparisons)
    tau, source = _tau(scores, how, difference, kept.p.numpy())
    embeddings = _embeddings(kept.images, options, how) if how.distance_by else None
    found = evaluate_comparisons(
        known, comparisons, tau=tau, embeddings=embeddings, **how.bootstrap
    )
    lines = [
        f"{_named(scores)} on {called}: {counted(len(found.p), 'comparison')} of "
        f"{counted(found.images, 'image')}, {counted(found.ties, 'tie')}",
        f"tau {tau:.6g} ({source})" if tau else f"no tau: {source}",
        f"spearman and kendall: {counted(found.ranked, 'image')} that comparisons connect",
    ]
    if found.left_out:
        lines.append(f"left out: {counted(found.left_out, 'comparison')} of images without a score")
    details = {
        **{"comparisons": len(found.p), "ties": found.ties, "images": found.images},
        **{"left_out": found.left_out, "ranked": found.ranked, "tau": tau, "tau_source": source},
        "trained_on": trained,
        "calibration": [b._asdict() for b in found.calibration],
        "by_distance": found.by_distance,
    }
    tables = {"": found.metrics}
    if found.weighted:
        tables["weighted"] = found.weighted
    arrays = (found.difference, found.p)
    plots = pair_plots(*arrays, tau=tau, distance=found.distance, name=scores.name)
    return Evaluated(lines, tables, details, plots, list(kept.images), scores)


def _of_two(comparisons: Comparisons) -> Comparisons:
    """Those of two different images; warnings name what else is odd about them."""
    from ..preferences.problems import doubts

    found = comparisons.of_two()
    if not len(found):
        raise ValueError("there is no comparison of two different images")
    for line in replace(doubts(comparisons), duplicates=()).lines():  # those may well be meant
        click.echo(f"Warning: {line}", err=True)
    return found


def on_ratings(file: Path, options: ScorerOptions, how: How) -> Evaluated:
    """A scorer on a file of mean opinion scores."""
    from ..preferences.evaluation import evaluate_ratings
    from ..preferences.plots import ratings_plot
    from ..preferences.ratings import read_ratings, told
    from .judged import scores_of_images

    ratings = read_ratings(file, **how.columns)
    for name, parts in ratings.splits.items():
        click.echo(
            f"Warning: {file.name} has a column {name}, {told(parts)}, and all of it is taken: "
            f"what a scorer was trained on flatters it; --where {name}=... takes a part",
            err=True,
        )
    trained = _trained_on(ratings.images, options)
    if trained:
        _warn(len(trained), f"of {len(ratings.images)} images are those that", options)
    scores = scores_of_images(ratings.images, options, how.journal, how.retry_errors)
    known = {row.path: row.score for row in scores.rows}
    found = evaluate_ratings(known, ratings, **how.bootstrap)
    image, column = ratings.columns
    lines = [
        f"{_named(scores)} on {file.name}: {counted(len(found.scores), 'image')}, "
        f"{counted(ratings.rows, 'rating')} ({column} of {image})"
    ]
    where = how.columns["where"]
    if where:
        asked = ", ".join(f"{name}={value}" for name, value in where)
        lines.append(f"selected: {asked}; left out: {counted(ratings.left_out, 'row')}")
    if ratings.unrated:
        lines.append(f"left out: {counted(ratings.unrated, 'row')} without a rating")
    if found.left_out:
        lines.append(f"left out: {counted(found.left_out, 'image')} without a score")
    details = {
        **{"images": len(found.scores), "ratings": ratings.rows, "left_out": found.left_out},
        **{"where": where, "rows_left_out": ratings.left_out},
        **{"columns": ratings.columns, "logistic": found.curve, "trained_on": len(trained)},
    }
    plot = ratings_plot(found.scores, found.values, found.curve, scores.name, column)
    images = [path for path in ratings.images if path in known]
    return Evaluated(lines, {"": found.metrics}, details, {"ratings": plot}, images, scores)


def _without_training(
    comparisons: Comparisons, options: ScorerOptions, unseen: bool
) -> tuple[Comparisons, int]:
    """The comparisons, and of how many the scorer was trained on an image: with `unseen`, without
    those; else a warning counts them."""
    from ..preferences.problems import apart_from

    fresh = apart_from(_trained_on(comparisons.images, options), comparisons)
    if unseen and not len(fresh):
        raise ValueError(
            f"--unseen leaves nothing: {options.scorer} was trained on images of all "
            f"{len(comparisons)} comparisons"
        )
    if unseen:
        return fresh, 0
    if own := len(comparisons) - len(fresh):
        advice = "; --unseen leaves those out"
        _warn(own, f"of {len(comparisons)} comparisons are of images that", options, advice)
    return comparisons, own


def _trained_on(images: Iterable[Path], options: ScorerOptions) -> set[Path]:
    """Those of the images that the scorer's own folder says it was trained on."""
    from ..preferences.problems import learned_by, learned_of

    return learned_of(images, learned_by(options.scorer))


def _warn(count: int, of: str, options: ScorerOptions, advice: str = "") -> None:
    click.echo(
        f"Warning: {count} {of} {options.scorer} was trained on, which flatters it{advice}",
        err=True,
    )


def _tau(scores: Scores, how: How, difference: Any, p: Any) -> tuple[float | None, str]:
    """The tau that makes differences win probabilities, and where it is from; or why there is none."""
    import torch

    from ..ranking import fit_tau
    from ..scorers.calibration import own_tau, read_calibration

    if how.tau is not None:
        return how.tau, "as given"
    if how.calibration:
        found = read_calibration(how.calibration, scores.name, scores.fingerprint_id)
        return found.tau, how.calibration.name
    if scores.card and (own := own_tau(scores.card)):
        return own, "the scorer's own"
    values = torch.stack([torch.as_tensor(difference), torch.zeros(len(p))], 1).flatten()
    pairs = torch.arange(2 * len(p)).reshape(-1, 2)
    try:
        tau = fit_tau(values, pairs, torch.as_tensor(p))
    except ValueError as error:
        return None, str(error)
    return tau, "fitted to these comparisons, so nll, r2, brier and ece flatter a little"


def _embeddings(images: tuple[Path, ...], options: ScorerOptions, how: How) -> dict[Path, Any]:
    from ..preferences.embeddings import embed_images

    # Without the options of the scorer that is evaluated: this one may be of another kind.
    plain = ScorerOptions(device=options.device, batch_size=options.batch_size)
    embedder = load_from_options(with_scorer(plain, how.distance_by))
    found = embed_images(embedder, images, batch_size=options.batch_size, progress=_watched())
    return dict(zip(images, found.double().numpy(), strict=True))


def add_robustness(found: Evaluated, options: ScorerOptions, most: int, how: How) -> None:
    """Adds the two tasks to what was found."""
    from random import Random

    from ..preferences.evaluation import Measured
    from ..preferences.robustness import robustness

    images = found.images
    if len(images) > most:
        images = Random(how.bootstrap["seed"]).sample(images, most)
    tasks = robustness(
        load_from_options(options),
        images,
        seed=how.bootstrap["seed"],
        batch_size=options.batch_size,
        progress=None,
    )
    said = ", ".join(f"{t.n} of {len(images)} ({kind})" for kind, t in tasks.items())
    found.lines.append(f"robustness: {said}")
    rows = {kind: Measured(t.accuracy, *t.interval) for kind, t in tasks.items()}
    found.tables["robustness"] = rows
    found.details["robustness_images"] = {kind: t.n for kind, t in tasks.items()}


def _named(scores: Scores) -> str:
    return f"{scores.name} {scores.fingerprint_id}"


def _watched() -> bool:
    return sys.stderr.isatty()
