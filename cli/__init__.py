"""The `tastemaker` command. A subcommand is imported when it is used, and torch when it is needed."""

from __future__ import annotations

from importlib import import_module
from sqlite3 import Error as SqliteError

import click

from .. import __version__

# Each is `command` in the module of that name.
COMMANDS = {
    "score": "Score pictures and videos into a journal that survives any interruption.",
    "rank": "Rank pictures into a contact sheet and an HTML report.",
    "filter": "Keep the best: print, link, copy or move them.",
    "tag": "Quality words for training, in a column or in sidecar files.",
    "compare": "Two pictures: both scores and the win probability.",
    "calibrate": "Measure scorers on your own set: what ensembles and win probabilities need.",
    "choose": "Which pictures to compare, and with which: few votes that go far.",
    "vote": "Collect comparisons on a page in your browser: one key a vote, none is lost.",
    "evaluate": "A scorer against comparisons or mean opinion scores, with intervals and plots.",
    "train": "A scorer of your own taste, from comparisons.",
    "agree": "How alike voters and scorers judge the same pairs.",
    "convert": "Turn an official release into a checkpoint that is read without pickles.",
    "doctor": "What is installed, which kernels run, and a self-test.",
    "demo": "Rank real generated pictures; nothing to download but packages.",
}

# What is wrong with the input or the environment, rather than with this program.
EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError, SqliteError)


class Commands(click.Group):
    """Lists its commands without importing them, and turns expected errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return import_module(f".{name}", __name__).command if name in COMMANDS else None

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            known = ", ".join(COMMANDS)
            raise click.UsageError(f"no such command: {args[0]} (commands: {known})", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):  # RuntimeErrors, but no errors
            raise
        except EXPECTED as error:
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The error's message on one line; its kind where it has none.

    `scorers.messages` has the same: its package imports torch, which may be what is missing.
    """
    return " ".join(str(error).split()) or type(error).__name__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tastemaker")
@click.option("--debug", is_flag=True, envvar="TASTEMAKER_DEBUG", help="Show tracebacks of errors.")
def main(debug: bool) -> None:
    """Score, rank, filter and tag pictures by quality. Nothing is written beside your pictures
    unless you ask for it."""
