"""`tastemaker train PAIRS`: a scorer of your own taste, from comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .options import EXISTING_FILE

SHOWN = ("accuracy", "nll", "auc", "brier", "ece")
HEADINGS = {
    "held_out": "{} held-out comparisons of images that were not trained on",
    "cross_validated": "nothing was held out; cross-validation of {} comparisons",
}


@click.command("train")
@click.argument("pairs", type=EXISTING_FILE)
@click.option("--base", default="nano", show_default=True, help="A scorer: name, folder or hub id.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("my-taste"),
    show_default=True,
    help="Folder of the personal scorer.",
)
@click.option("--name", help="What its card calls it. [default: the folder's name]")
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Held out to measure, where the file has no test part of its own. 0: cross-validation.",
)
@click.option("--full", is_flag=True, help="Train every weight, not the head alone: for thousands.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is held out.")
@click.option(
    "--robust/--no-robust",
    default=True,
    show_default=True,
    help="JPEG and low-resolution copies stay below their originals, as the base has it.",
)
@click.option("--device", help="Where it runs. [default: a GPU if there is one]")
@click.option("--overwrite", is_flag=True, help="Replace the personal scorer in --out.")
def command(
    pairs: Path,
    base: str,
    out: Path,
    name: str | None,
    test_fraction: float,
    full: bool,
    seed: int,
    robust: bool,
    device: str | None,
    overwrite: bool,
) -> None:
    """Learn your taste from PAIRS: JSON, CSV, or the votes of `tastemaker vote`.

    Pictures are embedded once, then a head is fitted in seconds. The folder opens by its path
    wherever a scorer is named: `tastemaker rank PICTURES --scorer ./my-taste`.
    """
    if full:
        _check_free(out, overwrite)
        metrics, notes = _full(pairs, base, out, name, test_fraction, seed, device)
    else:
        from ..preferences.train import train

        made = train(
            *(pairs, base, out),
            **dict(test_fraction=test_fraction, name=name, seed=seed, device=device),
            **dict(robust=robust, overwrite=overwrite),
        )
        metrics, notes = made.metrics, made.remarks()
    for note in notes:
        click.echo(f"note: {note}")
    _print(metrics)
    click.echo(f"written to {click.format_filename(out)}")


def _check_free(out: Path, overwrite: bool) -> None:
    """FileExistsError if a scorer is there that is not to be overwritten; a killed run goes on."""
    from ..preferences.finetune import CHECKPOINTS

    if (out / "config.json").exists() and not (out / CHECKPOINTS).exists() and not overwrite:
        raise FileExistsError(f"{out} holds something already: choose another, or overwrite it")


def _full(pairs, base, out, name, test_fraction, seed, device):
    """Fine-tunes the whole base."""
    from ..preferences.finetune import finetune
    from ..preferences.train import prepared
    from ..scorers import load_scorer
    from ..scorers.personal import check_base

    check_base(base)
    kept, held, dropped, notes = prepared(pairs, None, test_fraction, seed)
    if dropped:
        notes.append(f"{dropped} comparisons between both parts were left out")
    scorer = load_scorer(base, device=device)
    return finetune(scorer, kept, held, out, name=name, seed=seed).said.get("metrics", {}), notes


def _print(metrics: Mapping[str, Any]) -> None:
    """The metrics, beside the base's, with the intervals that there are."""
    from ..preferences.trained import measured_part

    kind = measured_part(metrics)
    if kind is None:
        click.echo("nothing was held out, so nothing was measured")
        return
    after, before = metrics[kind], metrics["base"]
    click.echo(f"{HEADINGS[kind].format(after['decided'])}:")
    click.echo(f"  {'':<10}{'base':>8}{'yours':>8}   {'95 % interval':<18}".rstrip())
    for name in SHOWN:
        if after.get(name) is not None:
            base = f"{before[name]:8.3f}" if before.get(name) is not None else f"{'':>8}"
            low, high = after.get("intervals", {}).get(name, (None, None))
            interval = "" if low is None else f"{low:.3f} to {high:.3f}"
            click.echo(f"  {name:<10}{base}{after[name]:8.3f}   {interval}".rstrip())
