"""`filter`, and files on their way: nothing is overwritten, lost, or done twice."""

import errno
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from cli_tools import Cli, flat_picture, staircase, start
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.cli import moves, transfer
from tastemaker.cli.transfer import ACTS, Step, perform, plan, with_sidecars


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its contents."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(tree(folder)) if folder.exists() else []


@pytest.mark.parametrize(
    "rule, expected",
    [
        (["--threshold", 0.5], "432"),
        (["--threshold", 2], ""),
        (["--top-k", 2], "43"),
        (["--top-k", 9], "43210"),
        (["--top-fraction", 0.3], "43"),
        (["--top-fraction", 0], ""),
    ],
)
def test_rules_print_the_kept_best_first(run, tmp_path, rule, expected):
    staircase(tmp_path)
    result = run("filter", tmp_path, *rule)
    assert result.stdout.split() == [str(tmp_path / f"{i}.png") for i in expected]
    assert f"{len(expected)} kept, {5 - len(expected)} rejected" in result.stderr


def test_existing_scores_are_enough(run, tmp_path):
    paths = staircase(tmp_path)
    table = tmp_path / "s.csv"
    run("score", tmp_path, "--export", table)
    assert run("filter", "--scores", table, "--top-k", 1).stdout.split() == [str(paths[4])]
    chosen = run("filter", *paths[:2], "--scores", table, "--top-k", 1).stdout
    assert chosen.split() == [str(paths[1])]
    assert len(run.loaded) == 1


@pytest.mark.parametrize("rule", [["--threshold", 0.9], ["--top-k", 1], ["--top-fraction", 0.3]])
def test_what_has_no_score_stays_where_it_is(run, tmp_path, rule):
    staircase(tmp_path / "in", 2)
    (tmp_path / "in/broken.png").write_bytes(b"x")
    command = ["filter", tmp_path / "in", *rule, "--action", "copy",
               "--kept", tmp_path / "k", "--rejected", tmp_path / "r"]  # fmt: skip
    result = run(*command)
    assert "1 without a score, left where they are" in result.stderr
    assert "1 kept, 1 rejected" in result.stderr
    assert (names(tmp_path / "k"), names(tmp_path / "r")) == (["1.png"], ["0.png"])
    result = run(*command, "--reject-unscored")
    assert "1 without a score, rejected" in result.stderr and "1 kept, 2 rejected" in result.stderr
    assert names(tmp_path / "r") == ["0.png", "broken.png"]


def test_what_a_file_of_scores_does_not_know_stays_where_it_is(run, tmp_path):
    paths = staircase(tmp_path / "in", 3)
    table = tmp_path / "s.csv"
    run("score", *paths[:2], "--export", table)
    result = run("filter", tmp_path / "in", "--scores", table, "--top-k", 1, "--action", "move",
                 "--rejected", tmp_path / "r")  # fmt: skip
    assert "1 without a score, left where they are" in result.stderr
    assert names(tmp_path / "r") == ["0.png"] and names(tmp_path / "in") == ["1.png", "2.png"]


def test_videos_that_cannot_be_read_here_stay_where_they_are(run, tmp_path, monkeypatch):
    staircase(tmp_path / "in", 2)
    (tmp_path / "in/v.mp4").write_bytes(b"a video")
    monkeypatch.setitem(sys.modules, "av", None)
    run("filter", tmp_path / "in", "--top-k", 1, "--action", "move", "--rejected", tmp_path / "r")
    assert names(tmp_path / "r") == ["0.png"] and names(tmp_path / "in") == ["1.png", "v.mp4"]


def test_a_list_made_by_hand(run, tmp_path):
    paths = staircase(tmp_path / "in")
    picked = tmp_path / "kept.txt"
    picked.write_text(f"{paths[3]}\n{paths[0]}\n")
    assert run("filter", "--list", picked).stdout.split() == [str(paths[3]), str(paths[0])]
    result = run("filter", tmp_path / "in", "--list", picked, "--action", "copy",
                 "--kept", tmp_path / "k", "--rejected", tmp_path / "r")  # fmt: skip
    assert "2 kept, 3 rejected" in result.stderr
    assert names(tmp_path / "k") == ["0.png", "3.png"]
    assert names(tmp_path / "r") == ["1.png", "2.png", "4.png"]
    assert run.loaded == []  # a list needs no scorer


def test_a_list_that_names_others_moves_nothing(run, tmp_path):
    paths = staircase(tmp_path / "in")
    before = tree(tmp_path / "in")
    listed = tmp_path / "list.txt"
    others = [tmp_path / f"other{i}.png" for i in range(5)]
    command = ["filter", tmp_path / "in", "--list", listed, "--action", "move",
               "--rejected", tmp_path / "r"]  # fmt: skip
    listed.write_text("\n".join(map(str, [paths[3], *others])))
    line = run.error(*command)
    assert line.endswith(f"are not among the PATHS: {others[0]}, {others[1]}, {others[2]}...")
    assert line.startswith("5 of ")
    listed.write_text(f"{others[4]}\n{paths[0]}\n")
    assert run.error(*command).endswith(f"1 of {listed} are not among the PATHS: {others[4]}")
    assert tree(tmp_path / "in") == before and not (tmp_path / "r").exists()


@pytest.mark.parametrize("action", ["link", "hardlink", "copy", "move"])
def test_actions(run, tmp_path, action):
    paths = staircase(tmp_path / "in")
    contents = tree(tmp_path / "in")
    command = [
        "filter",
        tmp_path / "in",
        "--top-k",
        2,
        "--action",
        action,
        "--kept",
        tmp_path / "k",
    ]
    times = paths[4].stat().st_mtime_ns

    dry = run(*command, "--dry-run")
    assert f"{paths[4]} -> {tmp_path / 'k' / '4.png'}" in dry.stdout.splitlines()
    assert not (tmp_path / "k").exists() and tree(tmp_path / "in") == contents

    run(*command)
    assert tree(tmp_path / "k") == {n: contents[n] for n in ("3.png", "4.png")}
    left = ["0.png", "1.png", "2.png"] if action == "move" else sorted(contents)
    assert names(tmp_path / "in") == left
    kept = tmp_path / "k" / "4.png"
    assert kept.is_symlink() == (action == "link")
    assert kept.stat().st_mtime_ns == times
    if action == "hardlink":
        assert kept.samefile(paths[4])

    if action != "move":
        again = run(*command)
        assert f"{action} 0 files" in again.stderr and "2 already there" in again.stderr
        assert names(tmp_path / "k") == ["3.png", "4.png"]


@pytest.mark.parametrize("action", ["link", "hardlink", "copy", "move"])
def test_names_that_are_taken_get_a_number(run, tmp_path, action):
    for i, folder in enumerate(["a", "b", "c"]):
        flat_picture(tmp_path / "in" / folder / "x.png", 50 * (i + 1))
    flat_picture(tmp_path / "k" / "x-2.png", 9)
    foreign = (tmp_path / "k" / "x-2.png").read_bytes()
    contents = sorted([*tree(tmp_path / "in").values(), foreign])
    command = [
        "filter",
        tmp_path / "in",
        "--top-k",
        3,
        "--action",
        action,
        "--kept",
        tmp_path / "k",
    ]
    run(*command)
    assert names(tmp_path / "k") == ["x-2.png", "x-3.png", "x-4.png", "x.png"]
    assert (tmp_path / "k" / "x-2.png").read_bytes() == foreign
    assert sorted(tree(tmp_path / "k").values()) == contents
    if action != "move":
        run(*command)
        assert len(names(tmp_path / "k")) == 4


def test_a_folder_within_the_paths_is_not_filtered_again(run, tmp_path):
    staircase(tmp_path)
    command = ["filter", tmp_path, "--top-k", 2, "--action", "copy", "--kept", tmp_path / "kept"]
    run(*command)
    assert "2 kept, 3 rejected" in run(*command).stderr


def test_sidecars_go_along(run, tmp_path):
    flat_picture(tmp_path / "in/a.png", 200)
    flat_picture(tmp_path / "in/a.b.png", 10)
    for pair in ("pair.png", "pair.jpg"):
        flat_picture(tmp_path / "in" / pair, 220)
    for name in ("a.txt", "a.quality.txt", "a.b.txt", "pair.txt", "other.txt", "ab.txt"):
        (tmp_path / "in" / name).write_text(name)
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "a.txt").write_text("another caption")
    result = run("filter", tmp_path / "in", "--top-k", 3, "--action", "move", "--with-sidecars",
                 "--kept", tmp_path / "k")  # fmt: skip
    assert names(tmp_path / "k") == [
        "a-2.png", "a-2.quality.txt", "a-2.txt", "a.txt", "pair.jpg", "pair.png",
    ]  # fmt: skip
    assert (tmp_path / "k" / "a-2.txt").read_text() == "a.txt"
    assert (tmp_path / "k" / "a.txt").read_text() == "another caption"
    assert names(tmp_path / "in") == ["a.b.png", "a.b.txt", "ab.txt", "other.txt", "pair.txt"]
    assert "1 sidecars belong to several pictures" in result.stderr


def log_of(result) -> Path:
    return Path(result.stdout.split("--undo ")[1].strip())


def test_a_move_can_be_undone_and_done_again(run, tmp_path):
    staircase(tmp_path / "in")
    before = tree(tmp_path)
    result = run("filter", tmp_path / "in", "--top-k", 2, "--action", "move",
                 "--kept", tmp_path / "k", "--rejected", tmp_path / "r")  # fmt: skip
    after = tree(tmp_path)
    assert names(tmp_path / "in") == []
    assert len(names(tmp_path / "k")) == 2 and len(names(tmp_path / "r")) == 3
    for moved in (5, 0):  # the second finds nothing left to do
        assert f"moved back: {moved} of 5" in run("filter", "--undo", log_of(result)).stdout
        assert tree(tmp_path) == before
    run("filter", "--resume", log_of(result))
    assert tree(tmp_path) == after


def test_undo_replaces_nothing(run, tmp_path):
    paths = staircase(tmp_path / "in", 2)
    result = run(
        "filter", tmp_path / "in", "--top-k", 2, "--action", "move", "--kept", tmp_path / "k"
    )
    flat_picture(paths[0], 99)
    new = paths[0].read_bytes()
    undone = run("filter", "--undo", log_of(result), code=1)
    assert "1 of 2 files stayed where they are" in undone.stderr
    assert "another file is there" in undone.stderr
    assert paths[0].read_bytes() == new and paths[1].exists()
    assert names(tmp_path / "k") == ["0.png"]


def test_only_logs_are_undone(run, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"path": "/a"}\n')
    assert "not a log of moves" in run.error("filter", "--undo", tmp_path / "x.jsonl")


def test_one_bad_file_does_not_stop_the_rest(run, tmp_path):
    paths = staircase(tmp_path / "in", 3)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, [paths[0], tmp_path / "gone.png", paths[2]])))
    result = run("filter", "--list", listed, "--action", "copy", "--kept", tmp_path / "k", code=1)
    assert "gone.png: No such file" in result.stderr and "1 of 3 files stayed" in result.stderr
    assert names(tmp_path / "k") == ["0.png", "2.png"]


def test_options_that_do_not_go_together(run, tmp_path):
    staircase(tmp_path, 1)
    one_of = "give one of --threshold, --top-k, --top-fraction and --list"
    assert one_of in run.usage_error("filter", tmp_path)
    assert one_of in run.usage_error("filter", tmp_path, "--top-k", 1, "--threshold", 1)
    with_folder = "go with --kept or --rejected"
    assert with_folder in run.usage_error("filter", tmp_path, "--top-k", 1, "--action", "move")
    assert with_folder in run.usage_error(
        "filter", tmp_path, "--top-k", 1, "--kept", tmp_path / "k"
    )
    move = ["filter", tmp_path, "--top-k", 1, "--action", "move"]
    same = ["--kept", tmp_path / "k", "--rejected", f"{tmp_path}/x/../k"]
    assert "are one folder" in run.usage_error(*move, *same)
    assert "both to be filtered" in run.usage_error(*move, "--kept", tmp_path)
    assert "1.5 is not in the range" in run.usage_error("filter", tmp_path, "--top-fraction", 1.5)
    both = ["--undo", tmp_path / "0.png", "--resume", tmp_path / "0.png"]
    assert "one of --resume and --undo" in run.usage_error("filter", *both)
    assert run.loaded == []


def test_undo_and_resume_can_be_tried_dry(run, tmp_path, monkeypatch):
    staircase(tmp_path / "in", 3)
    command = ["filter", tmp_path / "in", "--top-k", 0, "--action", "move",
               "--rejected", tmp_path / "r"]  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        run(*command, code=1)
    before, log = tree(tmp_path), moves.unfinished()[0]
    there = [f"{tmp_path / 'in' / name} -> {tmp_path / 'r' / name}" for name in ("1.png", "2.png")]
    assert run("filter", "--resume", log, "--dry-run").stdout.splitlines() == there
    back = f"{tmp_path / 'r' / '0.png'} -> {tmp_path / 'in' / '0.png'}"
    assert run("filter", "--undo", log, "--dry-run").stdout.splitlines() == [back]
    assert tree(tmp_path) == before and moves.unfinished() == [log]


def interrupt_after(monkeypatch, count: int) -> None:
    """Ctrl-C when so many files were moved."""
    done = iter(range(count))
    own = transfer.move

    def move(source, target):
        if next(done, None) is None:
            raise KeyboardInterrupt
        own(source, target)

    monkeypatch.setattr(moves, "move", move)


def test_an_interrupted_move_is_finished_by_the_same_command(run, tmp_path, monkeypatch):
    staircase(tmp_path / "in", 9)
    command = ["filter", tmp_path / "in", "--top-fraction", 0.5, "--action", "move",
               "--rejected", tmp_path / "r"]  # fmt: skip
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        stopped = run(*command, code=1)
    assert names(tmp_path / "r") == ["0.png", "1.png"]
    assert "Aborted" in stopped.stderr and ".unfinished.jsonl" in stopped.stdout
    # Another selection would be made on what is left: refused, with the way out.
    other = [*command[:3], 0.1, *command[4:]]
    assert "filter --resume" in run.error(*other)
    assert "moved: 2 of 4 files" in run(*command).stdout
    assert names(tmp_path / "r") == ["0.png", "1.png", "2.png", "3.png"]
    assert len(names(tmp_path / "in")) == 5
    assert not moves.unfinished()


def test_an_interrupted_move_can_be_taken_back(run, tmp_path, monkeypatch):
    staircase(tmp_path / "in", 6)
    before = tree(tmp_path)
    command = [
        "filter",
        tmp_path / "in",
        "--top-k",
        1,
        "--action",
        "move",
        "--rejected",
        tmp_path / "r",
    ]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        run(*command, code=1)
    run("filter", "--undo", moves.unfinished()[0])
    assert tree(tmp_path) == before
    assert not moves.unfinished()
    run(*command)
    assert len(names(tmp_path / "r")) == 5


SLOW_MOVE = """
import time
from tastemaker.cli import moves, transfer
own = transfer.move
def move(source, target):
    own(source, target)
    time.sleep(0.02)
moves.move = move
"""


@pytest.mark.slow
def test_a_killed_move_is_finished_by_the_same_command(run, tmp_path):
    staircase(tmp_path / "in", 200)
    contents = sorted(tree(tmp_path).values())
    command = [
        "filter",
        tmp_path / "in",
        "--top-k",
        20,
        "--action",
        "move",
        "--rejected",
        tmp_path / "r",
    ]
    process = start(command, run.home, SLOW_MOVE)
    while len(names(tmp_path / "r")) < 10 and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    assert sorted(tree(tmp_path).values()) == contents
    assert 10 <= len(names(tmp_path / "r")) < 180
    there = len(names(tmp_path / "in")) - 20  # are kept
    assert f"moved: {there} of 180 files" in run(*command).stdout
    assert len(names(tmp_path / "r")) == 180
    assert sorted(tree(tmp_path).values()) == contents


STUCK_MOVE = """
import time
from pathlib import Path
from tastemaker.cli import moves, transfer
own = transfer.move
def move(source, target):
    own(source, target)
    Path({flag!r}).touch()
    while Path({flag!r}).exists():
        time.sleep(0.01)
moves.move = move
"""


@pytest.fixture
def stuck(run, tmp_path):
    """A move of a/0.png and a/1.png to r by another process, which stops after the first file."""
    staircase(tmp_path / "a", 3)
    flag = tmp_path / "flag"
    command = ["filter", tmp_path / "a", "--top-k", 1, "--action", "move",
               "--rejected", tmp_path / "r"]  # fmt: skip
    process = start(command, run.home, STUCK_MOVE.format(flag=str(flag)))
    deadline = time.monotonic() + 60
    while not flag.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert flag.exists()
    yield process, command, flag
    process.kill()
    process.communicate()


def test_a_running_move_is_not_taken_for_an_interrupted_one(run, tmp_path, stuck):
    process, command, flag = stuck
    staircase(tmp_path / "b", 3)
    (log,) = moves.unfinished()
    assert moves.is_running(log)
    # What it does not touch goes on.
    run("filter", tmp_path / "b", "--top-k", 1, "--action", "move", "--kept", tmp_path / "k")
    assert names(tmp_path / "k") == ["2.png"] and moves.unfinished() == [log]
    # What it does touch is told: the same command, its folder, one of its files by a glob, its aims.
    into = ["--top-k", 2, "--action", "move", "--kept"]
    before = tree(tmp_path)
    for same in (
        command,
        ["filter", tmp_path / "a", *into, tmp_path / "x"],
        ["filter", tmp_path / "a" / "[1]*", *into, tmp_path / "x"],
        ["filter", tmp_path / "b", *into, tmp_path / "r"],
    ):
        error = run(*same, code=1).stderr.splitlines()[-1]
        assert "is moving these pictures now: wait" in error
    for how in ("--resume", "--undo"):
        assert "this move is running now, in another process" in run.error("filter", how, log)
    assert tree(tmp_path) == before
    while process.poll() is None:
        flag.unlink(missing_ok=True)
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()
    assert names(tmp_path / "r") == ["0.png", "1.png"] and not moves.unfinished()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_move_that_was_ended_is_interrupted(run, tmp_path, stuck, how):
    process, command, _ = stuck
    process.send_signal(getattr(signal, how))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert ("to undo: " in stdout and "Abort" in stderr) == (how == "SIGTERM")
    (log,) = moves.unfinished()
    assert not moves.is_running(log)
    other = [*command[:3], 2, *command[4:]]
    assert "another move was interrupted" in run.error(*other)
    assert "moved: 1 of 2 files" in run(*command).stdout
    assert names(tmp_path / "r") == ["0.png", "1.png"]


def test_a_move_is_undone_from_any_folder(run, tmp_path, monkeypatch):
    staircase(tmp_path / "in", 2)
    monkeypatch.chdir(tmp_path)
    result = run("filter", "in", "--top-k", 1, "--action", "move", "--kept", "k")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run("filter", "--undo", log_of(result))
    assert names(tmp_path / "in") == ["0.png", "1.png"] and names(tmp_path / "k") == []


@pytest.fixture
def two_disks(monkeypatch):
    """As on a file system across which no hard link is possible."""
    own = os.link

    def link(source, target, **how):
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        own(source, target, **how)

    monkeypatch.setattr(os, "link", link)


@pytest.fixture
def no_hard_links(monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("disk", ["two_disks", "no_hard_links"])
def test_moves_to_another_disk(tmp_path, request, disk):
    request.getfixturevalue(disk)
    source, target = flat_picture(tmp_path / "a.png", 3), tmp_path / "k" / "a.png"
    contents, times = source.read_bytes(), source.stat().st_mtime_ns
    target.parent.mkdir()
    transfer.move(source, target)
    assert tree(tmp_path) == {"k/a.png": contents} and target.stat().st_mtime_ns == times
    flat_picture(source, 77)
    with pytest.raises(FileExistsError):
        transfer.move(source, target)
    with pytest.raises(FileExistsError):
        transfer.copy(source, target)
    assert target.read_bytes() == contents and sorted(tree(tmp_path)) == ["a.png", "k/a.png"]


def test_the_old_file_goes_when_the_new_one_is_on_the_disk(tmp_path, two_disks, monkeypatch):
    source, target = flat_picture(tmp_path / "a.png", 3), tmp_path / "k" / "a.png"
    target.parent.mkdir()
    calls = []
    sync, unlink, sync_folder = os.fsync, os.unlink, transfer._sync_folder
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("contents") or sync(file))
    monkeypatch.setattr(
        transfer, "_sync_folder", lambda path: calls.append(path) or sync_folder(path)
    )
    monkeypatch.setattr(
        os, "unlink", lambda path, **_: path == source and calls.append("gone") or unlink(path)
    )
    transfer.move(source, target)
    assert calls == ["contents", target.parent, "contents", "gone"]  # the folder's own names too


@pytest.mark.parametrize("fails", ["copy2", "fsync", "link", "unlink"])
def test_a_move_to_another_disk_that_fails_loses_nothing(tmp_path, two_disks, monkeypatch, fails):
    source, target = flat_picture(tmp_path / "a.png", 3), tmp_path / "k" / "a.png"
    contents = source.read_bytes()
    target.parent.mkdir()
    module = shutil if fails == "copy2" else os
    own = getattr(module, fails)

    def failing(*args, **how):
        if fails == "copy2":
            Path(args[1]).write_bytes(contents[:10])
        if fails in ("copy2", "fsync") or Path(args[0]).parent == tmp_path:
            raise KeyboardInterrupt
        return own(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(module, fails, failing)
        with pytest.raises(KeyboardInterrupt):
            transfer.move(source, target)
    assert source.read_bytes() == contents
    assert set(tree(tmp_path)) <= {"a.png", "k/a.png"}
    transfer.move(source, target)  # repeated: finished
    assert tree(tmp_path) == {"k/a.png": contents}


def test_a_full_disk_ends_it_all(tmp_path):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    steps = [Step(tmp_path / "a", tmp_path / "k" / "a")] * 2
    with pytest.raises(OSError, match="No space"):
        list(perform(steps, full))


def test_links_are_moved_as_links(tmp_path):
    real = flat_picture(tmp_path / "real" / "a.png", 3)
    link = tmp_path / "in" / "b.png"
    link.parent.mkdir()
    link.symlink_to("../real/a.png")
    target = tmp_path / "k" / "deep" / "b.png"
    target.parent.mkdir(parents=True)
    transfer.move(link, target)
    assert target.is_symlink() and target.samefile(real) and real.exists() and not link.is_symlink()


def test_a_sidecar_shared_by_two_pictures_stays(tmp_path):
    paths = [flat_picture(tmp_path / name, 3) for name in ("a.png", "a.jpg", "b.png")]
    for name in ("a.txt", "b.txt", "b.npz", ".b.txt"):
        (tmp_path / name).touch()
    groups, shared = with_sidecars(paths)
    assert groups == [[paths[0]], [paths[1]], [paths[2], tmp_path / "b.npz", tmp_path / "b.txt"]]
    assert shared == 1


FILES = st.lists(
    st.tuples(
        st.sampled_from("xyz"),
        st.sampled_from(["a.png", "A.png", "a-2.png", "a.b.png", "b.jpg"]),
        st.binary(max_size=2),
    ),
    max_size=12,
    unique_by=lambda f: f[:2],
)


@given(
    files=FILES,
    there=st.dictionaries(st.sampled_from(["a.png", "a-2.png", "a-3.png"]), st.binary(max_size=2)),
    action=st.sampled_from(["link", "hardlink", "copy", "move"]),
    stop=st.integers(0, 12),
)
def test_whatever_the_names_nothing_is_lost_and_a_repeat_changes_nothing(
    tmp_path_factory, files, there, action, stop
):
    root = tmp_path_factory.mktemp("t")
    sources = []
    for folder, name, content in files:
        path = root / "in" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sources.append(path)
    target = root / "k"
    target.mkdir()
    for name, content in there.items():
        (target / name).write_bytes(content)
    wanted = [content for *_, content in files]

    steps, done = plan([[path] for path in sources], target, action)
    assert len(steps) + done == len(files)
    list(perform(steps[:stop], ACTS[action]))  # interrupted here
    if action != "move":
        steps, done = plan([[path] for path in sources], target, action)
        assert len(steps) + done == len(files)
    failures = [f for f in perform(steps, ACTS[action]) if f]
    assert not failures
    kept = tree(target)
    assert {name: kept[name] for name in there} == there
    if action == "move":
        assert tree(root / "in") == {}
        assert sorted(kept.values()) == sorted([*wanted, *there.values()])
        list(perform([Step(t, s) for s, t in reversed(steps)], transfer.move))
        assert tree(target) == there
    assert sorted(tree(root / "in").values()) == sorted(wanted)
    if action != "move":
        assert plan([[path] for path in sources], target, action) == ([], len(files))
