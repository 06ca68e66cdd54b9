"""PATHS: which files they mean, in which order, and what is wrong with them."""

import io
import os
import sys
from pathlib import Path

import pytest

from tastemaker.cli.files import MARKER, PICTURE_SUFFIXES, expand, mark_as_ours


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path, *paths, **how) -> list[str]:
    return [p.relative_to(root).as_posix() for p in expand([str(p) for p in paths], **how)]


def test_folders_are_recursive_sorted_and_skip_what_is_hidden(tmp_path):
    touch(
        tmp_path, "b.png", "a.JPG", "z/1.webp", "c/2.png", "c/d/3.mp4", "c/notes.txt", "x.png.txt"
    )
    touch(tmp_path, ".hidden.png", ".cache/4.png", "c/.git/5.png")
    expected = ["a.JPG", "b.png", "c/2.png", "c/d/3.mp4", "z/1.webp"]
    assert names(tmp_path, tmp_path) == expected
    assert names(tmp_path, tmp_path) == names(tmp_path, f"{tmp_path}/")


def test_arguments_keep_their_order_and_named_files_their_suffix(tmp_path):
    touch(tmp_path, "b.png", "a/1.png", "odd.picture", ".hidden.png")
    paths = [tmp_path / "odd.picture", tmp_path / "a", tmp_path / ".hidden.png", tmp_path / "b.png"]
    assert names(tmp_path, *paths) == ["odd.picture", "a/1.png", ".hidden.png", "b.png"]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png")
    monkeypatch.chdir(tmp_path / "a")
    assert list(expand(["1.png"])) == list(expand(["../a"])) == [tmp_path / "a" / "1.png"]


def test_links_are_followed_but_never_in_circles(tmp_path):
    touch(tmp_path, "in/1.png", "in/sub/2.png", "far/3.png")
    (tmp_path / "in/sub/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to(".")
    (tmp_path / "in/far").symlink_to(tmp_path / "far")
    (tmp_path / "in/again").symlink_to(tmp_path / "far")
    assert names(tmp_path, tmp_path / "in") == ["in/1.png", "in/again/3.png", "in/sub/2.png"]


def test_globs(tmp_path):
    touch(tmp_path, "a1.png", "a2.png", "b.png", "a.txt", "sub/a3.png", "sub/deep/a4.png")
    assert names(tmp_path, tmp_path / "a*") == ["a1.png", "a2.png"]
    assert names(tmp_path, tmp_path / "**/a*.png") == [
        "a1.png", "a2.png", "sub/a3.png", "sub/deep/a4.png",
    ]  # fmt: skip
    assert names(tmp_path, tmp_path / "s*") == ["sub/a3.png", "sub/deep/a4.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
def test_pipes_are_left_out_and_named_where_they_are_given(tmp_path):
    """Whoever opens one waits for ever."""
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "to_pipe.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "to_a.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "to_nothing.png").symlink_to(tmp_path / "gone.png")
    expected = ["a.png", "to_a.png", "to_nothing.png"]
    assert names(tmp_path, tmp_path) == expected
    assert names(tmp_path, tmp_path / "*.png") == expected
    for name in ("pipe.png", "to_pipe.png"):
        with pytest.raises(ValueError, match=f"a named pipe, not a picture: .*{name}"):
            expand([str(tmp_path / "a.png"), str(tmp_path / name)])
    with pytest.raises(ValueError, match="a device, not a picture: /dev/null"):
        expand(["/dev/null"])


def test_our_own_output_is_not_taken_unless_it_is_named(tmp_path):
    touch(tmp_path, "a.png", "out/.tastemaker", "out/sheet.png", "out/deep/b.png", "s/c.png")
    for paths in ([tmp_path], [tmp_path / "*"], [tmp_path / "**"], [tmp_path / "**/*.png"]):
        assert set(names(tmp_path, *paths)) == {"a.png", "s/c.png"}
    own = ["out/sheet.png", "out/deep/b.png"]
    assert names(tmp_path, tmp_path / "out") == own
    assert names(tmp_path, *(tmp_path / name for name in own)) == own
    assert names(tmp_path, tmp_path / "out/*.png") == own[:1]
    assert names(tmp_path, tmp_path / "out/**/*.png") == sorted(own)


def test_a_folder_with_other_pictures_does_not_become_ours(tmp_path):
    touch(tmp_path, "mine/deep/a.png", "notes/a.txt")
    for folder in ("mine", "notes", "new/deep"):
        mark_as_ours(tmp_path / folder)
    marked = sorted(p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.rglob(MARKER))
    assert marked == ["new/deep", "notes"]
    assert names(tmp_path, tmp_path) == ["mine/deep/a.png"]


def test_a_file_may_be_called_like_a_glob_or_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "[x].png", "@x.png")
    assert names(tmp_path, "[x].png", "@x.png") == ["[x].png", "@x.png"]


def test_lists_are_taken_line_by_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = b"\xef\xbb\xbfb.png\r\n\r\n with space .png\n@odd\ngone.png\n\xff.png"
    (tmp_path / "list.txt").write_bytes(lines)
    expected = ["b.png", " with space .png", "@odd", "gone.png", os.fsdecode(b"\xff.png")]
    assert names(tmp_path, "@list.txt") == expected


def test_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spelling in ("-", "@-"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("a.png\nb.png\n"))
        assert names(tmp_path, spelling) == ["a.png", "b.png"]


def test_excluded_folders_are_not_entered(tmp_path):
    touch(tmp_path, "1.png", "kept/2.png", "sub/kept/3.png")
    assert names(tmp_path, tmp_path, exclude=[tmp_path / "kept"]) == ["1.png", "sub/kept/3.png"]
    assert names(tmp_path, tmp_path / "*", exclude=[tmp_path / "kept"]) == [
        "1.png", "sub/kept/3.png",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["nowhere", "nowhere/1.png", "@no.txt", "*.webp", "@sub"])
def test_what_does_not_exist_is_named_before_anything_is_read(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "1.png", "sub/2.png")
    with pytest.raises(FileNotFoundError) as caught:
        expand(["1.png", path])
    assert path.removeprefix("@") in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_found_is_an_error_at_once(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=f"no pictures or videos in {tmp_path}"):
        expand([str(tmp_path)])
    with pytest.raises(ValueError, match="no PATHS"):
        expand([])


def test_a_folder_that_may_not_be_read_is_left_out_with_a_warning(tmp_path, monkeypatch, capsys):
    touch(tmp_path, "1.png", "closed/2.png", "open/3.png")
    scandir = os.scandir

    def guarded(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert names(tmp_path, tmp_path) == ["1.png", "open/3.png"]
    assert "closed (Permission denied)" in capsys.readouterr().err
    with pytest.raises(PermissionError):
        expand([str(tmp_path / "closed")])


def test_files_are_streamed(tmp_path, monkeypatch):
    """What comes later is not listed before it is the turn."""
    for i in range(3):
        touch(tmp_path, f"{i}/x.png")
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: seen.append(str(folder)) or scandir(folder))
    next(expand([str(tmp_path)]))
    assert str(tmp_path / "0") in seen and str(tmp_path / "1") not in seen


def test_every_picture_suffix_is_one_that_pillow_knows():
    from PIL import Image, features

    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    optional = {".avif"} if not features.check("avif") else set()
    assert set(PICTURE_SUFFIXES) - known <= optional | {".qoi"}
