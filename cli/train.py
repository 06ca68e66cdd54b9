"""`tastemaker train PAIRS`: a scorer of your own taste, from comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .options import EXISTING_FILE

SHOWN = ("accuracy", "nll", "auc", "brier", "ece")


class FullOption(click.Option):
    """One of --full: of `finetune`, which calls it the same."""


full_option = partial(click.option, cls=FullOption)


class TwoGroups(click.Command):
    """Its help lists the options of --full by themselves."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        for title, of_full in (("Options", False), ("With --full", True)):
            chosen = [each for each in options if isinstance(each, FullOption) == of_full]
            with formatter.section(title):
                formatter.write_dl([each.get_help_record(ctx) for each in chosen])


@click.command("train", cls=TwoGroups)
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
@click.option("--voter", help="Of a store of votes: whose. [default: the only one's]")
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Held out to measure, where the file has no test part of its own. 0: cross-validation.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is held out.")
@click.option(
    "--robust/--no-robust",
    default=True,
    show_default=True,
    help="JPEG and low-resolution copies stay below their originals, as the base has it.",
)
@click.option("--device", help="Where it runs. [default: a GPU if there is one]")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace what training wrote to --out before: once the new scorer is whole.",
)
@click.option("--full", is_flag=True, help="Train every weight, not the head alone: for thousands.")
@full_option("--epochs", type=click.FloatRange(0, min_open=True), help="Passes. [default: 3]")
@full_option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="The highest learning rate. [default: 2e-5 for JoyQuality, 1e-3 for nano]",
)
@full_option(
    "--schedule",
    type=click.Choice(["one-cycle", "cosine"]),
    help="How the rate rises and falls. [default: one-cycle]",
)
@full_option("--weight-decay", type=click.FloatRange(0), help="AdamW's. [default: 0.01]")
@full_option(
    *("--batch-size", "batch"),
    type=click.IntRange(1),
    help="Comparisons in memory at a time. [default: 8]",
)
@full_option("--accumulate", type=click.IntRange(1), help="Such batches a step. [default: 8]")
@full_option(
    "--precision",
    type=click.Choice(["auto", "bf16", "no"]),
    help="bf16: matrix products in bfloat16; no: float32. [default: auto, bf16 on a GPU]",
)
@full_option(
    "--gradient-checkpointing",
    is_flag=True,
    help="JoyQuality: far less memory, about a third more time.",
)
@full_option(
    "--checkpoint-every",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Steps between checkpoints and looks at what is held out. [default: a tenth of all]",
)
@full_option(
    "--patience",
    type=click.IntRange(1),
    metavar="N",
    help="Stop early, after N looks without a lower loss of what is held out. [default: never; the "
    "weights of the lowest one are kept anyway]",
)
@click.pass_context
def command(
    ctx: click.Context,
    pairs: Path,
    base: str,
    out: Path,
    name: str | None,
    voter: str | None,
    test_fraction: float,
    seed: int,
    robust: bool,
    device: str | None,
    overwrite: bool,
    full: bool,
    **recipe: Any,
) -> None:
    """Learn your taste from PAIRS: JSON, CSV, or the votes of `tastemaker vote`.

    Pictures are embedded once, then a head is fitted in seconds. The folder opens by its path
    wherever a scorer is named: `tastemaker rank PICTURES --scorer ./my-taste`.

    With --full, all of nano or JoyQuality is trained by AdamW; the same command goes on where it was
    killed.
    """
    given = _given(ctx, full)
    how = dict(name=name, voter=voter, test_fraction=test_fraction, seed=seed, device=device)
    if full:
        options = {key: value for key, value in recipe.items() if key in given}
        metrics, dropped, notes = _full(pairs, base, out, overwrite=overwrite, **how, **options)
    else:
        from ..preferences.train import train

        made = train(pairs, base, out, **how, robust=robust, overwrite=overwrite)
        metrics, dropped, notes = made.metrics, made.dropped, made.remarks()
    for note in notes:
        click.echo(f"note: {note}")
    _print(metrics, dropped)
    click.echo(f"written to {click.format_filename(out)}")


def _given(ctx: click.Context, full: bool) -> set[str]:
    """The parameters that were given. UsageError for those that go without --full, or with it only."""
    given = set()
    for param in ctx.command.params:
        if ctx.get_parameter_source(param.name) != ParameterSource.DEFAULT:
            given.add(param.name)
            if isinstance(param, FullOption) and not full:
                raise click.UsageError(f"{param.opts[0]} goes only with --full")
    if full and "robust" in given:
        raise click.UsageError("--robust and --no-robust go only without --full")
    return given


def _full(
    pairs: Path,
    base: str,
    out: Path,
    *,
    voter: str | None,
    test_fraction: float,
    seed: int,
    device: str | None,
    **how: Any,
) -> tuple[Mapping[str, Any], int, list[str]]:
    """Fine-tunes the whole base: its metrics, how many comparisons were left out, what was noticed."""
    from ..preferences.finetune import finetune
    from ..preferences.problems import learned_by
    from ..preferences.train import check_bases, prepared
    from ..preferences.trained import left_out
    from ..scorers import load_scorer
    from ..scorers.personal import base_entry, check_base

    check_base(base)
    learned = learned_by(base)
    kept, held, dropped, notes = prepared(pairs, None, test_fraction, seed, voter, learned=learned)
    if dropped:
        notes.append(left_out(dropped))
    scorer = load_scorer(base, device=device)
    check_bases(out, scorer, base_entry(base, scorer.card))
    if held:
        notes.append("its best state was chosen by the held-out loss: what is held out flatters it")
    made = finetune(scorer, kept, held, out, seed=seed, learned=learned, **how)
    return made.said.get("metrics", {}), dropped, notes


def _print(metrics: Mapping[str, Any], dropped: int) -> None:
    """The metrics, beside the base's, with the intervals that there are."""
    from ..preferences.trained import measured_on, measured_part

    kind = measured_part(metrics)
    if kind is None:
        click.echo(measured_on(metrics, dropped))
        return
    after, before = metrics[kind], metrics["base"]
    intervals = after.get("intervals", {})
    click.echo(f"{measured_on(metrics, dropped)}:")
    column = "   95 % interval" if intervals else ""
    click.echo(f"  {'':<10}{'base':>8}{'yours':>8}{column}")
    for name in SHOWN:
        if after.get(name) is not None:
            base = f"{before[name]:8.3f}" if before.get(name) is not None else f"{'':>8}"
            low, high = intervals.get(name, (None, None))
            interval = "" if low is None else f"   {low:.3f} to {high:.3f}"
            click.echo(f"  {name:<10}{base}{after[name]:8.3f}{interval}")
