"""What files of others hold: values checked one by one, errors in one line."""

import json
import math

import pytest

from tastemaker.scorers import values
from tastemaker.scorers.messages import naming, needs, one_line

WRONG = {
    "COUNT": [None, 0, -1, 1.0, True, "1", []],
    "COUNTS": [None, 1, [], [1, 0], [1, None], "12", {}],
    "WHOLES": [None, 0, [], [-1], [0.0], "0"],
    "NUMBER": [None, "0", math.nan, math.inf, False, []],
    "WEIGHT": [None, -1, -1e-9, math.inf],
    "POSITIVE": [None, 0, -1, 0.0, math.nan, "1"],
    "PART": [None, 0, 1.1, -0.5],
    "COLOUR": [None, 1, [1, 2], [1, 2, 3, 4], [1, 2, None], [1, 2, math.inf], "123"],
    "SCALE": [None, [1, 2, 0], [1, 2], [1, 2, -1]],
    "THREE_COUNTS": [None, [1, 2], [1, 2, 0], [1, 2, 3.0]],
    "TEXT": [None, "", 1, ["x"]],
    "OBJECT": [None, [], "x", 1],
}
RIGHT = {
    "COUNT": [1, 10**9],
    "COUNTS": [[1], [3, 2]],
    "WHOLES": [[0, 1]],
    "NUMBER": [-1, 0, 1e-9],
    "WEIGHT": [0, 0.5],
    "POSITIVE": [1, 1e-6],
    "PART": [1, 0.25],
    "COLOUR": [[0, 0.5, -1], (1, 2, 3)],
    "SCALE": [[0.2, 1, 2]],
    "THREE_COUNTS": [[11, 11, 10]],
    "TEXT": ["x"],
    "OBJECT": [{}, {"a": 1}],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_value_is_named_with_file_and_key(kind):
    for found in WRONG[kind]:
        with pytest.raises(ValueError) as caught:
            values.value({"key": found}, "key", getattr(values, kind), "a/file.json")
        message = str(caught.value)
        assert message.startswith("a/file.json: key must be ") and message.endswith(repr(found))
    for found in RIGHT[kind]:
        assert values.value({"key": found}, "key", getattr(values, kind), "") is found


def test_every_kind_is_tested():
    kinds = {name for name, found in vars(values).items() if isinstance(found, values.Kind)}
    assert kinds == set(WRONG) == set(RIGHT)


@pytest.mark.parametrize("holder", [{}, None, [], "key"])
def test_a_missing_value_is_named(holder):
    with pytest.raises(ValueError, match=r"^file\.json lacks 'key'$"):
        values.value(holder, "key", values.COUNT, "file.json")


def test_a_long_value_is_cut():
    with pytest.raises(ValueError) as caught:
        values.value({"key": list(range(999))}, "key", values.TEXT, "file.json")
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[1]", b"3", b"[" * 100_000])
def test_what_is_no_json_object_is_named(text, tmp_path):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"^not (a )?JSON.*x\.json") as caught:
        values.read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    assert values.read_json(tmp_path / "x.json") == {"a": 1}
    with pytest.raises(FileNotFoundError, match=r"no such file: .*y\.json"):
        values.read_json(tmp_path / "y.json")


def test_one_line():
    assert one_line(ValueError("two\n  lines ")) == "two lines"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("some words that are cut"), 12) == "some words ..."
    assert one_line(ValueError("x" * 20), 12) == "x" * 12 + " ..."


def test_others_errors_name_the_file_and_want_of_a_package_passes():
    with pytest.raises(ValueError, match=r"^config\.json: two lines$"), naming("config.json"):
        raise AttributeError("two\nlines")
    for passing in (ImportError("no jinja2"), MemoryError()):
        with pytest.raises(type(passing)), naming("config.json"):
            raise passing


def test_a_missing_package_is_named_itself_too():
    text = 'videos need PyAV: pip install -U av, or pip install "tastemaker[video]"'
    assert str(needs("videos need PyAV", "av", "video")) == text
