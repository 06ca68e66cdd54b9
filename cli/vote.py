"""`tastemaker vote`: a page in your browser that asks which of two pictures you prefer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import signal
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ..wording import counted
from .options import EXISTING_FILE, OUTPUT_FILE

if TYPE_CHECKING:
    from ..preferences.booth import Booth
    from ..preferences.learning import Learner, Model
    from ..preferences.votes import Votes


ONE_VOTER = "me"  # who votes where nobody is named


@click.command("vote")
@click.argument("source", type=click.Path(exists=True, path_type=Path), metavar="FOLDER|PAIRS.csv")
@click.option(
    "--pairs",
    type=EXISTING_FILE,
    help="A CSV with the columns left and right: these pairs are asked, in this order.",
)
@click.option(
    "--store",
    type=OUTPUT_FILE,
    help="The file of votes. [default: one for each folder, in your data folder]",
)
@click.option(
    "--voter",
    default=ONE_VOTER,
    show_default=True,
    help="Whose votes; one file holds those of several.",
)
@click.option("--base", default="nano", show_default=True, help="The scorer whose head learns.")
@click.option("--no-learning", is_flag=True, help="Only ask: nothing is learned or suggested.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="[default: the one of last time, or any that is free]",
)
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option(
    "--export",
    type=OUTPUT_FILE,
    help="Write this voter's votes as .csv or .json, and ask nothing.",
)
def command(
    source: Path,
    pairs: Path | None,
    store: Path | None,
    voter: str,
    base: str,
    no_learning: bool,
    port: int,
    no_browser: bool,
    export: Path | None,
) -> None:
    """Collect comparisons: two pictures side by side, one key a vote.

    Left and right arrow (or A and D) prefer a picture, the down arrow or Space calls a tie, S skips,
    Z takes back; hold a picture to see both magnified. A vote is on the disk before the next pair
    appears. Meanwhile the base scorer's head learns from the votes, and the page tells how well it
    guesses them, from the votes alone: `train` besides keeps spoiled copies below the pictures, unless
    with --no-robust. Given a CSV of pairs, the page asks about these.

    Where another voter has votes in the same file, one in four of the random pairs is one that
    was judged there, without showing how: `tastemaker agree` then tells how alike the voters are.

    The page is served to this computer only, at an address that cannot be guessed.
    """
    from ..preferences.booth import Booth
    from ..preferences.votes import Votes
    from ..preferences.voting import aiohttp_web

    if not voter.strip():
        raise click.BadParameter("a voter needs a name", param_hint="--voter")
    aiohttp_web()  # whether it is installed shows before anything else is done
    wanted = wanted_pictures(source, pairs)
    path = Path(os.path.abspath(store or default_store(wanted.folder)))
    _hint_at_moved(path, wanted.folder)
    votes = Votes(path, wanted.folder)
    if export:
        _export(votes, export, voter)
        return
    train = _advice(votes, voter, base)
    with _learning(votes, voter, wanted.pictures, None if no_learning else base) as learner:
        booth = Booth(votes, voter, wanted.pictures, wanted.queue, learner, train)
        page = Page(path)
        _serve(booth, page, port or page.free_port(), no_browser)
    _say_goodbye(booth)


class Wanted(NamedTuple):
    """What is shown: `queue` are pairs in their order, or None where pairs are chosen."""

    folder: Path
    pictures: list[Path]
    queue: list[tuple[Path, Path]] | None


def wanted_pictures(source: Path, pairs: Path | None) -> Wanted:
    """The pictures of a folder, or those of a CSV of pairs.

    Raises:
        ValueError, FileNotFoundError: there are fewer than two, or pairs of what does not exist.
    """
    from ..preferences.asking import missing_files, read_queue
    from .files import PICTURE_SUFFIXES, expand

    if source.is_file():
        if pairs is not None:
            raise ValueError(f"{source} is no folder: give the pairs once")
        source, pairs = source.absolute().parent, source
    folder = Path(os.path.abspath(source))
    if pairs is None:
        found = (path for path in expand([str(folder)]) if path.suffix.lower() in PICTURE_SUFFIXES)
        pictures, queue = list(found), None
    else:
        queue = read_queue(pairs)
        if missing := missing_files(queue):
            raise FileNotFoundError(
                f"{len(missing)} pictures of {pairs} do not exist, such as {missing[0]}"
            )
        pictures = list(dict.fromkeys(path for pair in queue for path in pair))
    if len(pictures) < 2:
        raise ValueError(f"there must be two pictures to compare: {folder} has {len(pictures)}")
    return Wanted(folder, pictures, queue)


def default_store(folder: Path) -> Path:
    """The user's own file of votes about a folder."""
    from ..scorers.home import home

    name = re.sub(r"[^\w.-]+", "-", folder.name) or "pictures"
    return home() / "votes" / f"{name}-{_digest(folder)}.sqlite"


class Page:
    """The address of a file's page, kept so that a page that is still open finds its server again."""

    def __init__(self, store: Path):
        from ..scorers.home import home

        self.path = home() / "votes" / f"page-{_digest(store)}.json"
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            self.token, self.port = str(known["token"]), int(known["port"])
        except (OSError, ValueError, KeyError, TypeError):
            self.token, self.port = "", 0
        if not re.fullmatch(r"[\w-]{20,}", self.token, re.ASCII):
            self.token = secrets.token_urlsafe(24)

    def free_port(self) -> int:
        """The port of last time; 0, for any, if somebody else has it now."""
        import socket

        with contextlib.closing(socket.socket()) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if os.name != "nt" else 0)
            try:
                tried.bind(("127.0.0.1", self.port))
            except (OSError, OverflowError):
                return 0
        return self.port

    def keep(self, port: int) -> None:
        """Remembers the address, for this user's eyes only."""
        from ..scorers.checkpoint import replacing

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps({"token": self.token, "port": port}), encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:10]


@contextlib.contextmanager
def _learning(
    votes: Votes, voter: str, pictures: list[Path], base: str | None
) -> Iterator[Learner | None]:
    """A learner at work, or None without a base."""
    if base is None:
        yield None
        return
    from ..preferences.learning import Learner

    def load() -> Model:  # by the learner's thread: the page is there before the scorer
        from ..preferences.live import HeadModel

        return HeadModel(base)

    learner = Learner(votes, voter, pictures, load, base)
    learner.start()
    try:
        yield learner
    finally:
        learner.stop()


def _serve(booth: Booth, page: Page, port: int, no_browser: bool) -> None:
    """Until Ctrl+C, or a signal to end."""
    from ..preferences.voting import serve

    def started(url: str, port: int) -> None:
        page.keep(port)
        count = len(booth.votes())
        click.echo(
            f"{counted(len(booth.pictures), 'picture')}, {counted(count, 'vote')} in {booth.store.path}"
        )
        click.echo(f"Vote at {url}\nCtrl+C ends; no vote is lost, whenever you do.")
        if not no_browser:  # not in this thread: some browsers return when they are closed
            threading.Thread(target=_open_browser, args=(url,), daemon=True).start()

    async def until_ended() -> None:
        loop, server = asyncio.get_running_loop(), asyncio.current_task()
        for name in ("SIGINT", "SIGTERM"):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl+C is KeyboardInterrupt
                loop.add_signal_handler(getattr(signal, name), server.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serve(booth, page.token, port, started)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(until_ended())


def _open_browser(url: str) -> None:
    if not webbrowser.open(url):
        click.echo("no browser could be started: open the address yourself", err=True)


def _advice(votes: Votes, voter: str, base: str) -> str:
    """The command that trains on this voter's votes, who is named where others may vote as well."""
    alone = voter == ONE_VOTER and not votes.voters().keys() - {voter}
    whose = [] if alone else ["--voter", voter]
    train = ["tastemaker", "train", str(votes.path), *whose]
    return shlex.join([*train, "--base", base, "--out", "my-taste"])


def _say_goodbye(booth: Booth) -> None:
    count = sum(vote.answer != "skip" for vote in booth.votes())
    click.echo(f"\n{counted(count, 'vote')} of {booth.voter} in {booth.store.path}")
    if count:
        click.echo(f"Train your scorer: {booth.advice}")


def _export(votes: Votes, path: Path, voter: str) -> None:
    from ..preferences.comparisons import write_comparisons
    from ..preferences.votes import read_votes

    comparisons = read_votes(votes.path, voter=voter)
    write_comparisons(path, comparisons)
    click.echo(f"{counted(len(comparisons), 'vote')} of {voter} in {path}")


def _hint_at_moved(path: Path, folder: Path) -> None:
    """A folder that was moved has a file of votes under its old address."""
    if path.exists() or not path.parent.is_dir():
        return
    from ..preferences.votes import Votes

    for other in sorted(path.parent.glob("*.sqlite")):
        with contextlib.suppress(OSError, ValueError):
            was = Votes(other).folder
            if was.name == folder.name and not was.exists():
                click.echo(
                    f"Votes about {was}, which is gone: go on with --store {other}", err=True
                )
