"""The journal: each image once ever, whatever happens in between."""

import errno
import math
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest
from cli_tools import flat_picture, staircase, start
from stub import Brightness

from tastemaker.cli import journal as module
from tastemaker.cli.journal import Journal
from tastemaker.cli.options import ScorerOptions
from tastemaker.cli.scoring import scored, scores_of
from tastemaker.cli.stopping import stopped_as_by_ctrl_c
from tastemaker.scorers import stream
from tastemaker.scorers.home import home

CARD = Brightness().card


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_HOME", str(tmp_path_factory.mktemp("home")))


class Counting(Brightness):
    """Notes the value of every picture that it scores."""

    def __init__(self):
        super().__init__()
        self.seen: list[float] = []

    def score_prepared(self, x):
        scores = super().score_prepared(x)
        self.seen += scores.tolist()
        return scores


@pytest.fixture
def scorer(monkeypatch):
    """The one scorer that every name loads."""
    counting = Counting()
    monkeypatch.setattr("tastemaker.scorers.load_scorer", lambda *_, **__: counting)
    return counting


def score(*paths, **how):
    return scores_of([str(path) for path in paths], ScorerOptions(), **how)


def test_each_image_is_scored_once_ever(tmp_path, scorer):
    paths = staircase(tmp_path)
    first = score(tmp_path)
    assert [row.path for row in first.rows] == paths
    assert first.values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    again = score(tmp_path / "3.png", tmp_path, tmp_path / "*.png")  # named thrice, listed once
    assert [row.path.name for row in again.rows] == ["3.png", "0.png", "1.png", "2.png", "4.png"]
    assert len(scorer.seen) == 5
    assert again.card == first.card == scorer.card


def test_a_file_that_changes_is_scored_again(tmp_path, scorer):
    first, second = staircase(tmp_path, 2)
    score(tmp_path)
    os.utime(first, ns=(1, 1))
    flat_picture(second, 7, size=(50, 60))
    assert score(tmp_path).values[1] == pytest.approx(7 / 255)
    assert len(scorer.seen) == 4
    assert len(list(Journal.of(scorer.card).all_rows())) == 2


def test_errors_are_kept_and_retried_on_request(tmp_path, scorer):
    staircase(tmp_path, 2)
    broken = tmp_path / "a.png"
    broken.write_bytes(b"no picture")
    rows = score(tmp_path).rows
    assert [row.error for row in rows[:2]] == [None, None]
    assert math.isnan(rows[2].score) and str(broken) in rows[2].error
    status = broken.stat()
    flat_picture(broken, 100)
    broken.write_bytes(broken.read_bytes())
    os.utime(broken, ns=(status.st_mtime_ns, status.st_mtime_ns))
    with Journal.of(scorer.card) as journal:  # as if the file had looked the same all along
        journal._db.execute(
            "UPDATE scores SET size = ? WHERE error IS NOT NULL", (broken.stat().st_size,)
        )
    assert score(tmp_path).rows[2].error is not None
    assert score(tmp_path, retry_errors=True).values[2] == pytest.approx(100 / 255)
    assert len(scorer.seen) == 3


def test_a_file_that_is_missing_is_scored_when_it_comes(tmp_path, scorer):
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'late.png'}\n")
    (row,) = score(f"@{tmp_path / 'list.txt'}").rows
    assert "no such file" in row.error
    flat_picture(tmp_path / "late.png", 51)
    assert score(f"@{tmp_path / 'list.txt'}").values == [pytest.approx(0.2)]


def test_nan_from_the_scorer_is_an_error(tmp_path, scorer):
    staircase(tmp_path, 1)
    scorer.weight.data.fill_(math.nan)
    (row,) = score(tmp_path).rows
    assert math.isnan(row.score) and row.error == "the scorer returned NaN"


def test_names_that_are_not_unicode(tmp_path, scorer):
    name = tmp_path / os.fsdecode(b"\xff\xfe.png")
    try:
        flat_picture(tmp_path / "x.png", 51).rename(name)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert [row.path for row in score(tmp_path).rows] == [name]
    assert [row.path for row in score(tmp_path).rows] == [name]
    assert len(scorer.seen) == 1


def test_each_fingerprint_has_its_own_journal_by_default(tmp_path, scorer):
    staircase(tmp_path, 2)
    score(tmp_path)
    scorer.half()
    score(tmp_path)
    assert len(scorer.seen) == 4
    assert len(list((home() / "scores").glob("brightness-*.sqlite"))) == 2


def test_another_fingerprint_is_refused_in_one_line(tmp_path, scorer):
    staircase(tmp_path, 1)
    journal = tmp_path / "own.sqlite"
    score(tmp_path, journal=journal)
    scorer.half()
    match = r"own.sqlite holds scores of .* \(dtype: float32 there, float16 here\): use another"
    with pytest.raises(ValueError, match=match) as caught:
        score(tmp_path, journal=journal)
    assert "\n" not in str(caught.value)


FOREIGN = {
    "text": b"path,score\n",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "sqlite": None,
    "newer": None,
    "cut off": None,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_and_damaged_files_are_refused_and_unchanged(tmp_path, kind):
    path = tmp_path / "x.sqlite"
    if FOREIGN[kind] is not None:
        path.write_bytes(FOREIGN[kind])
    elif kind == "sqlite":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE meta (name, value)")
        other.close()
    else:
        with Journal(path, CARD) as journal:
            if kind == "newer":
                journal._db.execute("PRAGMA user_version = 2")
        if kind == "cut off":
            path.write_bytes(path.read_bytes()[:4096])
    before = path.read_bytes()
    with pytest.raises((ValueError, RuntimeError), match=str(path)) as caught:
        Journal(path, CARD)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.sqlite"]


def test_damage_that_shows_later_names_the_file(tmp_path):
    path = tmp_path / "x.sqlite"
    with Journal(path, CARD) as journal:
        journal.ask(Path(f"/{i}") for i in range(3000))
        for entry in journal.missing():
            journal.record(entry, 0.5)
    contents = bytearray(path.read_bytes())
    contents[4096 * 6 :] = b"\xa5" * (len(contents) - 4096 * 6)
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=f"damaged: {path}"), Journal(path) as journal:
        list(journal.all_rows())


def test_a_full_disk_is_told_and_loses_nothing_that_was_kept(tmp_path):
    path = tmp_path / "x.sqlite"
    with Journal(path, CARD) as journal:
        journal.ask([Path("/first")])
        journal.record(*[(entry, 0.5) for entry in journal.missing()][0])
    with pytest.raises(RuntimeError, match=f"{path}: database or disk is full"):
        with Journal(path, CARD) as journal:
            journal._db.execute("PRAGMA max_page_count = 8")
            journal.ask(Path(f"/{i}") for i in range(5000))
            for entry in journal.missing():
                journal.record(entry, 0.5)
    with Journal(path, CARD) as journal:
        assert Path("/first") in [row.path for row in journal.all_rows()]


def test_reading_needs_no_card_and_creates_nothing(tmp_path):
    with Journal(tmp_path / "x.sqlite", CARD):
        pass
    with Journal(tmp_path / "x.sqlite") as journal:
        assert journal.card == CARD
    with pytest.raises(FileNotFoundError, match="no such journal"):
        Journal(tmp_path / "y.sqlite")
    assert not (tmp_path / "y.sqlite").exists()


def test_unknown_images_are_not_errors_of_the_journal(tmp_path):
    with Journal(tmp_path / "x.sqlite", CARD) as journal:
        journal.ask([Path("/a"), Path("/b")])
        assert [row.error for row in journal.rows()] == ["not scored", "not scored"]
        assert journal.missing_count() == 2 and journal.summary().low is None


def test_results_are_committed_within_a_second_or_a_thousand_rows(tmp_path, monkeypatch):
    def kept() -> int:
        with sqlite3.connect(tmp_path / "x.sqlite") as other:
            return other.execute("SELECT count(*) FROM scores").fetchone()[0]

    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Journal(tmp_path / "x.sqlite", CARD) as journal:
        journal.ask(Path(f"/{i}") for i in range(1500))
        entries = list(journal.missing())
        for entry in entries[:999]:
            journal.record(entry, 0.5)
        assert kept() == 0
        journal.record(entries[999], 0.5)
        assert kept() == 1000
        journal.record(entries[1000], 0.5)
        now += 1.0
        journal.record(entries[1001], 0.5)
        assert kept() == 1002
        journal.record(entries[1002], 0.5)
    assert kept() == 1003


def test_what_is_interrupted_while_it_is_kept_is_kept_again(tmp_path, monkeypatch):
    """Ctrl-C between the statements of a transaction."""

    class Interrupted:
        def __init__(self, db):
            self.db = db

        def executemany(self, *args):
            self.db.executemany(*args)
            journal._db = self.db
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(self.db, name)

        def __enter__(self):
            return self.db.__enter__()

        def __exit__(self, *error):
            return self.db.__exit__(*error)

    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "x.sqlite", CARD) as journal:
        journal.ask([Path("/a")])
        (entry,) = journal.missing()
        journal.record(entry, 0.5)
        journal._db = Interrupted(journal._db)
        journal.flush()
    with Journal(tmp_path / "x.sqlite") as journal:
        assert [row.score for row in journal.all_rows()] == [0.5]


SLOW = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal, also in the background
import time
import stub
from tastemaker.cli import journal
journal.FLUSH_SECONDS = 0.02

class scorer(stub.Brightness):
    default_batch_size = 1
    def score_prepared(self, x):
        time.sleep(0.02)
        return super().score_prepared(x)
"""


def wait_for_rows(path: Path, count: int) -> None:
    """Until another process has committed so many results."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as other:
                if other.execute("SELECT count(*) FROM scores").fetchone()[0] >= count:
                    return
        except sqlite3.OperationalError:
            pass
        time.sleep(0.01)
    raise AssertionError("the run never got so far")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "how", ["SIGKILL", "SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)]
)
def test_a_run_survives_any_end(tmp_path, monkeypatch, scorer, how):
    pictures, journal = tmp_path / "in", tmp_path / "x.sqlite"
    staircase(pictures, 120)
    (pictures / "broken.png").write_bytes(b"")
    run = start(["score", pictures, "--journal", journal], home(), SLOW)
    try:
        wait_for_rows(journal, 20)
        run.send_signal(getattr(signal, how))
        _, stderr = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode not in (0, None)
    if how != "SIGKILL":
        assert "the same command goes on" in stderr and "Traceback" not in stderr
    with sqlite3.connect(journal) as kept:
        before = kept.execute("SELECT count(*) FROM scores WHERE score IS NOT NULL").fetchone()[0]
        assert kept.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kept.close()
    assert 19 <= before < 120
    resumed = score(pictures, journal=journal)
    assert len(scorer.seen) == 120 - before == len(set(scorer.seen))
    assert len(resumed.rows) == 121 and sum(row.error is None for row in resumed.rows) == 120
    unbroken = score(pictures, journal=tmp_path / "unbroken.sqlite")
    assert [r.path for r in resumed.rows] == [r.path for r in unbroken.rows]
    assert resumed.values[:-1] == unbroken.values[:-1]
    assert {row.score for row in unbroken.rows if not row.error} == set(resumed.values[:-1])


STUCK = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for each in {{"SIGTERM", "SIGHUP"}} & {{*dir(signal)}}:  # as at a terminal, also where nohup runs the tests
    signal.signal(getattr(signal, each), signal.SIG_DFL)
import time
from pathlib import Path
import stub
from tastemaker.cli import journal
journal.FLUSH_SECONDS = float("inf")

class scorer(stub.Brightness):
    default_batch_size = 4
    def score_prepared(self, x):
        if len(self.batches) == 2:
            Path({flag!r}).touch()
            time.sleep(600)
        return super().score_prepared(x)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGHUP"])
def test_what_was_scored_is_committed_before_the_next_batch(tmp_path, how):
    """Two batches of two sizes are done, and the third takes for ever."""
    for i in range(16):
        flat_picture(tmp_path / "in" / f"{i:02}.png", 10 * i, size=(6, 5 + i % 2))
    flag, journal = tmp_path / "third", tmp_path / "x.sqlite"
    run = start(
        ["score", tmp_path / "in", "--journal", journal], home(), STUCK.format(flag=str(flag))
    )
    try:
        deadline = time.monotonic() + 60
        while not flag.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(getattr(signal, how))
        _, stderr = run.communicate(timeout=60)
    finally:
        run.kill()
    assert flag.exists() and run.returncode not in (0, None)
    assert ("the same command goes on" in stderr) == (how != "SIGKILL")
    assert "Traceback" not in stderr
    with Journal(journal) as kept:
        assert len([row for row in kept.all_rows() if row.error is None]) == 8


def test_signals_that_others_answer_are_left_alone():
    def theirs(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with stopped_as_by_ctrl_c():
            assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(KeyboardInterrupt), stopped_as_by_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), MemoryError()])
def test_failures_that_may_pass_are_tried_again_by_the_next_run(
    tmp_path, scorer, monkeypatch, error
):
    def fail(path):
        raise error

    staircase(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with monkeypatch.context() as away:
        away.setattr("PIL.Image.open", fail)
        rows = score(tmp_path).rows
    assert len(scorer.seen) == 0 and not any("not scored" in row.error for row in rows)
    decoded = []
    own = stream.decode
    monkeypatch.setattr(stream, "decode", lambda item: decoded.append(item) or own(item))
    assert [row.error for row in score(tmp_path).rows[:3]] == [None] * 3
    assert len(decoded) == 4 and len(scorer.seen) == 3
    assert "not a picture" in score(tmp_path).rows[3].error
    assert len(decoded) == 4  # damage stays


def test_memory_that_ran_out_is_tried_again_by_the_next_run(tmp_path, scorer, monkeypatch):
    def fail(x):
        raise MemoryError("not enough memory")

    paths = staircase(tmp_path, 2)
    with monkeypatch.context() as little:
        little.setattr(scorer, "score_prepared", fail)
        rows = score(tmp_path).rows
    assert [(row.path, row.error) for row in rows] == [(p, "not enough memory") for p in paths]
    assert score(tmp_path).values == pytest.approx([127 / 255, 254 / 255])


@pytest.mark.slow
def test_two_runs_at_once_share_a_journal(tmp_path, scorer):
    staircase(tmp_path / "a", 40)
    staircase(tmp_path / "b", 40)
    journal = tmp_path / "x.sqlite"
    runs = [start(["score", tmp_path / n, "--journal", journal], home(), SLOW) for n in "ab"]
    for run in runs:
        _, stderr = run.communicate(timeout=120)
        assert run.returncode == 0, stderr
    assert len(score(tmp_path, journal=journal).rows) == 80
    assert not scorer.seen


@pytest.mark.parametrize("images", [15_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch, scorer, images):
    """Listing, scoring and exporting: many more images, the same peak."""
    import tracemalloc

    from tastemaker.cli.export import export_rows, write_table
    from tastemaker.scorers import Scored

    def score_batches(scorer, images, batch_size, on_error):
        return ([Scored(image, 0.5)] for image in images)

    monkeypatch.setattr("tastemaker.cli.scoring.score_batches", score_batches)
    # pathlib interns names; Python's table of them outlives the paths, and doubles now and then.
    monkeypatch.setattr(sys, "intern", str)
    numbers = iter(range(9))

    def peak(count: int) -> int:
        paths = (Path(f"/pictures/{i:09}.png") for i in range(count))
        monkeypatch.setattr("tastemaker.cli.scoring.expand", lambda *_: paths)
        tracemalloc.start()
        with scored(["-"], ScorerOptions(), tmp_path / f"{next(numbers)}.sqlite") as run:
            rows = export_rows(run.journal.rows(), "x", "y")
            write_table(tmp_path / "x.csv", rows)
            assert run.journal.summary().images == count == run.fresh
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)  # whatever is imported on the way
    small, large = peak(3_000), peak(images)
    assert large < 1.3 * small + 200_000


@pytest.mark.parametrize(
    "platform, variables, expected",
    [
        ("linux", {"TASTEMAKER_HOME": "/x/y"}, "/x/y"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/tastemaker"),
        ("linux", {}, "/user/.local/share/tastemaker"),
        ("darwin", {}, "/user/Library/Application Support/tastemaker"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/tastemaker"),
    ],
)
def test_the_data_folder(monkeypatch, platform, variables, expected):
    for name in ("TASTEMAKER_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/user")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert home().as_posix() == expected
