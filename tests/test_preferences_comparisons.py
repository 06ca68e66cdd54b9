"""Comparisons in files: what is read, what is refused by name, and what is wrong with them."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tastemaker.cli.judged import is_comparisons
from tastemaker.preferences.asking import read_queue
from tastemaker.preferences.comparisons import (
    Comparisons,
    read_comparisons,
    write_comparisons,
    write_pairs,
)
from tastemaker.preferences.problems import apart_from, first_copies, problems


def written(folder, name, text) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(comparisons):
    return [(a.name, b.name, p) for a, b, p in comparisons.rows()]


def test_upstream_json_honours_every_label(tmp_path):
    train = [["a.png", "b.png", 1], ["a.png", "c.png", -1], ["b.png", "c.png", 0]]
    path = written(tmp_path, "pairs.json", json.dumps({"train": train, "test": [["d", "e", -1]]}))
    train, test = read_comparisons(path)
    assert rows(train) == [("a.png", "b.png", 1), ("a.png", "c.png", 0), ("b.png", "c.png", 0.5)]
    assert rows(test) == [("d", "e", 0)]
    assert train.images[0] == tmp_path / "a.png"  # relative to the file's folder


def test_json_without_a_test(tmp_path):
    path = written(tmp_path, "pairs.json", '{"train": [["a", "b", 1]], "test": []}')
    assert read_comparisons(path)[1] is None


def test_csv_carries_probabilities(tmp_path):
    path = written(
        tmp_path, "pairs.csv", '\ufeffleft,right,p\n"a,1.png",b.png,0.25\n\n/x,b.png,1\n'
    )
    train, test = read_comparisons(path)
    assert test is None
    assert rows(train) == [("a,1.png", "b.png", 0.25), ("x", "b.png", 1)]
    assert Path("/x") in train.images and tmp_path / "b.png" in train.images


REFUSED = {
    "label.json": ('{"train": [["a","b",1],["a","b",0.7]]}', r"train\[1\].*0\.7.*\.csv"),
    "true.json": ('{"train": [["a","b",true]]}', r"train\[0\].*True"),
    "text.json": ('{"train": [["a","b","1"]]}', r"train\[0\].*'1'"),
    "list.json": ('{"train": [["a","b",[1]]]}', r"train\[0\].*\[1\]"),
    "null.json": ('{"train": [["a","b",null]]}', r"train\[0\]"),
    "short.json": ('{"train": [["a","b"]]}', r"train\[0\].*no comparison"),
    "long.json": ('{"train": [["a","b",1,2]]}', r"train\[0\].*no comparison"),
    "number.json": ('{"train": [["a",3,1]]}', r"train\[0\].*no comparison"),
    "other.json": ('{"training": []}', "must be"),
    "both.json": ('{"train": [], "extra": []}', "must be"),
    "no.json": ("{", "not JSON"),
    "empty.json": ('{"train": []}', "no comparisons in"),
    "header.csv": ("winner,loser\na,b\n", "line 1 .*left, right and p, got winner,loser"),
    "none.csv": ("a,b,1\n", "line 1 .*left, right and p"),
    "nothing.csv": ("", "line 1 .*left, right and p"),
    "minus.csv": ("left,right,p\na,b,1\na,b,-1\n", r"line 3 .*\[0, 1\], got -1.*\.json"),
    "over.csv": ("left,right,p\na,b,1.5\n", "line 2 "),
    "nan.csv": ("left,right,p\na,b,nan\n", "line 2 "),
    "word.csv": ("left,right,p\na,b,left\n", "line 2 .*'left'"),
    "cells.csv": ("left,right,p\na,b\n", "line 2 .*no comparison"),
    "name.csv": ("left,right,p\na,,1\n", "line 2 .*no comparison"),
    "empty.csv": ("left,right,p\n", "no comparisons in"),
    "pairs.txt": ("left,right,p\n", "not a file of comparisons"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_in_one_line(tmp_path, name):
    text, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        read_comparisons(written(tmp_path, name, text))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*pairs.csv"):
        read_comparisons(tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match="a folder"):
        read_comparisons(tmp_path)


names = st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=8)
names = names.filter(lambda name: name not in (".", ".."))


@settings(max_examples=40)
@given(st.lists(st.tuples(names, names, st.floats(0, 1)), min_size=1, max_size=8))
def test_a_csv_is_read_as_it_was_written(tmp_path_factory, triples):
    folder = tmp_path_factory.mktemp("csv")
    comparisons = Comparisons.of((folder / a, Path("/far") / b, p) for a, b, p in triples)
    write_comparisons(folder / "pairs.csv", comparisons)
    assert list(read_comparisons(folder / "pairs.csv")[0].rows()) == list(comparisons.rows())


@pytest.mark.parametrize(
    "text",
    [
        "Left,RIGHT,p\na,b,0.25\n",
        "p,who,left,right\n0.25,anna,a,b\n",
        "left;right;p\na;b;0,25\n",
        "left\tright\tp\r\na\tb\t0.25\r\n",
        "left,right,p\ra,b,0.25\r,,\r",
        "left;right;p\n;;\na;b;0,25\n\n",
    ],
)
def test_a_csv_as_spreadsheets_write_it(tmp_path, text):
    path = written(tmp_path, "p.csv", text)
    assert is_comparisons(path)
    assert rows(read_comparisons(path)[0]) == [("a", "b", 0.25)]
    assert read_queue(path) == [(tmp_path / "a", tmp_path / "b")]


def test_pairs_without_an_answer_are_left_out(tmp_path):
    path = written(tmp_path, "p.csv", "left,right,p\na,b,1\na,c,\nb,c, \n")
    with pytest.warns(UserWarning, match="p.csv: left out, 2 pairs without an answer"):
        found, _ = read_comparisons(path)
    assert rows(found) == [("a", "b", 1)]
    path = written(tmp_path, "q.csv", "left,right,p\na,b,\n")
    with pytest.raises(ValueError, match="nobody has answered .*q.csv yet: tastemaker vote"):
        read_comparisons(path)


def test_an_image_compared_with_itself_is_left_out():
    found = Comparisons.of([("a", "b", 1), ("c", "c", 1), ("b", "a", 0.5)]).of_two()
    assert rows(found) == [("a", "b", 1), ("b", "a", 0.5)] and len(found.images) == 2
    assert not len(Comparisons.of([("c", "c", 1)]).of_two())


@settings(max_examples=40)
@given(st.lists(st.tuples(names, names, st.sampled_from([0, 0.5, 1])), min_size=1, max_size=8))
def test_a_json_is_read_as_it_was_written(tmp_path_factory, triples):
    folder = tmp_path_factory.mktemp("json")
    train = Comparisons.of((folder / a, folder / b, p) for a, b, p in triples)
    test = Comparisons.of([(folder / "x", "/y", 0.5)])
    write_comparisons(folder / "pairs.json", train, test)
    read = read_comparisons(folder / "pairs.json")
    assert [list(part.rows()) for part in read] == [list(train.rows()), list(test.rows())]
    assert os.listdir(folder) == ["pairs.json"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_unicode(tmp_path):
    comparisons = Comparisons.of([(os.fsdecode(b"/a\xff.png"), "/b", 1)])
    for name in ("pairs.csv", "pairs.json"):
        write_comparisons(tmp_path / name, comparisons)
        assert read_comparisons(tmp_path / name)[0].images == comparisons.images


def test_what_a_file_cannot_hold(tmp_path):
    votes, sure = Comparisons.of([("a", "b", 1)]), Comparisons.of([("a", "b", 0.7)])
    with pytest.raises(ValueError, match="0.7"):
        write_comparisons(tmp_path / "x.json", sure)
    with pytest.raises(ValueError, match="one list"):
        write_comparisons(tmp_path / "x.csv", votes, votes)
    with pytest.raises(ValueError, match="x.txt"):
        write_comparisons(tmp_path / "x.txt", votes)
    assert not list(tmp_path.iterdir())


def picture(path: Path) -> Path:
    Image.new("RGB", (4, 3)).save(path, "PNG")
    return path


def test_problems_are_named(tmp_path):
    for name in "abcde":
        picture(tmp_path / name)
    path = {name: tmp_path / name for name in "abcdex"}
    train = [
        ("a", "b", 1),
        ("b", "a", 0),
        ("a", "c", 1),
        ("c", "a", 1),
        ("c", "c", 1),
        ("x", "b", 1),
    ]
    train = Comparisons.of((path[a], path[b], p) for a, b, p in train)
    test = Comparisons.of([(path["d"], path["e"], 1), (path["d"], path["a"], 0)])
    found = problems(train, test)
    assert found.missing == (path["x"],) and found.themselves == (path["c"],)
    assert found.duplicates == ((path["a"], path["b"]),)
    assert found.contradictions == ((path["a"], path["c"]),)
    assert found.leaked == (path["a"],)
    assert len(list(found.lines())) == 5 and str(path["x"]) in next(found.lines())
    assert rows(apart_from(set(train.images), test)) == [("d", "e", 1)]


def test_no_problems(tmp_path):
    picture(tmp_path / "a"), picture(tmp_path / "b")
    found = problems(Comparisons.of([(tmp_path / "a", tmp_path / "b", 0.5)]))
    assert not found and not list(found.lines())


def test_what_is_no_picture_is_named_with_what_is_missing(tmp_path):
    good = [picture(tmp_path / f"{i}.png") for i in range(3)]
    broken = [tmp_path / name for name in ("empty.png", "text.jpg", "folder.png", "cut.webp")]
    broken[0].touch(), broken[1].write_text("no picture"), broken[2].mkdir()
    Image.new("RGB", (64, 64)).save(broken[3])
    broken[3].write_bytes(broken[3].read_bytes()[:20])
    pairs = [(image, good[0], 1) for image in [*broken, *good[1:], tmp_path / "gone.png"]]
    found = problems(Comparisons.of(pairs))
    assert set(found.unreadable) == {broken[0], broken[1], broken[3]}
    assert set(found.missing) == {broken[2], tmp_path / "gone.png"}
    missing, unreadable = found.lines()
    assert found.faults and missing.startswith("no such file (2): ")
    assert unreadable.startswith("no picture (3): ") and "\n" not in missing + unreadable
    assert all(str(image) in missing + unreadable for image in broken)
    assert not problems(Comparisons.of([(good[0], good[1], 1)])).faults


@given(st.floats(0, 1), st.booleans())
def test_the_same_comparison_seen_from_the_other_side_is_a_duplicate(p, twice):
    mirrored = Comparisons.of([("a", "b", p), ("b", "a", 1 - p)] * (2 if twice else 1))
    found = problems(mirrored)
    assert len(found.duplicates) == 1 and not found.contradictions
    decimal = Comparisons.of([("a", "b", 0.3), ("b", "a", 0.7)])
    assert len(problems(decimal).duplicates) == 1
    other = Comparisons.of([("a", "b", p), ("b", "a", 1 - p - 0.01 if p < 0.5 else 1.01 - p)])
    assert not problems(other).duplicates


def test_ties_contradict_nothing():
    train = Comparisons.of([("a", "b", 0.5), ("a", "b", 1), ("b", "a", 0.5)])
    found = problems(train)
    assert not found.contradictions and len(found.duplicates) == 1


def test_copies_of_a_picture_are_one_image(tmp_path):
    for name, text in {"a": "same", "b": "else", "c": "same", "d": "longer"}.items():
        (tmp_path / name).write_text(text)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert first_copies([a, b, c, d, a]) == {a: a, b: b, c: a, d: d}
    train = Comparisons.of([(c, b, 1), (d, c, 0)])
    assert rows(train.merged(first_copies([a, *train.images]))) == [("a", "b", 1), ("d", "a", 0)]


def test_take_keeps_the_images_that_are_compared():
    train = Comparisons.of([("/a", "/b", 1), ("/c", "/b", 0), ("/d", "/a", 0.5)])
    assert rows(train.take([1])) == [("c", "b", 0)]
    assert rows(train.take(train.p > 0)) == [("a", "b", 1), ("d", "a", 0.5)]
    assert len(train.take([])) == 0 == len(train.take([]).images)


def test_pairs_to_vote_on_are_comparisons_without_an_answer(tmp_path):
    path = tmp_path / "deep" / "pairs.csv"
    inside, outside = tmp_path / "deep" / "in" / "a,b.png", tmp_path / "c.png"
    write_pairs(path, [(inside, outside), (outside, inside)])
    assert read_queue(path) == [(inside, outside)]
    text = path.read_bytes().decode()
    assert text.startswith('left,right,p\r\n"in/a,b.png",') and text.endswith('a,b.png",\r\n')
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("line", [0, 1])
def test_a_cell_without_end_is_said(tmp_path, line):
    lines = ["left,right,p", "a,b,1"]
    lines[line] = f"{'a' * 140_000},b,1"
    (tmp_path / "p.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"line \d of .*p.csv is not CSV: field larger"):
        read_comparisons(tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"line \d of .*p.csv is not CSV: field larger"):
        read_queue(tmp_path / "p.csv")
