"""Saving: names from templates, inside one folder and never taken; metadata; a table that survives."""

import csv
import json
import math
import multiprocessing
import os
import threading
from datetime import datetime
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tastemaker.report import names, pictures
from tastemaker.report.names import fill, inside, new_folder, numbered, publish, score_text
from tastemaker.report.pictures import PNG, save_picture, webp
from tastemaker.report.prompt import find_seed, widgets
from tastemaker.report.table import Table

NOW = datetime(2026, 3, 7, 14, 5, 9)
UNBOUNDED = (-math.inf, math.inf)


# --- templates


@pytest.mark.parametrize(
    "template, name",
    [
        ("plain", "plain"),
        ("%score%_%scorer%", "00.734_nano"),
        ("%date:yyyy-MM-dd%/%date:hhmmss%", "2026-03-07/140509"),
        ("%date:d.M.yy h:m%", "7.3.26 14_5"),
        ("%year%%month%%day%_%hour%%minute%%second%", "20260307_140509"),
        ("%KSampler.steps%_%My sampler.cfg%", "20_7.5"),
        ("100% sure", "100% sure"),
        ("%seed%x", "x"),
        ("%evil%", ".._.._etc"),
    ],
)
def test_templates(template, name):
    values = {"score": "00.734", "scorer": "nano", "seed": None, "evil": "../../etc"}
    inputs = {"KSampler": {"steps": 20}, "My sampler": {"cfg": 7.5}}
    assert fill(template, values, NOW, inputs) == name


def test_an_unknown_field_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"%scores% is not known: %score%, %date"):
        fill("%scores%", {"score": "1"}, NOW)
    with pytest.raises(ValueError, match=r"%scores% is not known: %date:yyyy"):
        fill("%scores%", {}, NOW)


@pytest.mark.parametrize(
    "score, bounds, text",
    [
        (0.5, (0, 1), "0.500"),
        (0.7344, UNBOUNDED, "00.734"),
        (-1.25, UNBOUNDED, "-01.250"),
        (7.0, (0, 100), "007.000"),
        (math.nan, (0, 1), "unscored"),
        (math.inf, UNBOUNDED, "inf"),
        (-math.inf, UNBOUNDED, "-inf"),
    ],
)
def test_scores_in_names(score, bounds, text):
    assert score_text(score, bounds) == text


@given(st.lists(st.floats(0, 100), min_size=2))
def test_names_sort_as_their_scores(scores):
    texts = [score_text(score, (0, 100)) for score in sorted(scores)]
    assert texts == sorted(texts) and len({len(text) for text in texts}) == 1


# --- paths


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/x", "\\x", "a\\..\\x", "C:x", "C:/x", "//host/x", "..", "a/.."],
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="inside the output folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["", "a/", "a/.", "a\nb", "a\0b", "what?", "a" * 201])
def test_names_that_no_file_may_have_are_refused(tmp_path, name):
    with pytest.raises(ValueError):
        inside(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["con", "NUL/x", "x/aux.csv", "com1.tar.gz", "a./b", "a /b", ".../b"]
)
def test_names_that_windows_takes_for_something_else_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="Windows"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["console", "a.con/x", "com10", "./a. ", ".hidden/x"])
def test_names_that_only_look_so_are_not(tmp_path, name):
    assert inside(tmp_path, name).is_relative_to(tmp_path)


def test_links_that_lead_out_are_refused_and_others_are_not(tmp_path):
    folder = tmp_path / "output"
    (folder / "real").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "table.csv").symlink_to(tmp_path / "elsewhere.csv")
    (folder / "within").symlink_to(folder / "real")
    for name in ("out/x", "table.csv"):
        with pytest.raises(ValueError, match="by a link"):
            inside(folder, name)
    assert inside(folder, "within/x") == folder / "within" / "x"


def test_an_output_folder_that_is_itself_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "disk")
    assert inside(tmp_path / "output", "a//./b") == tmp_path / "output" / "a" / "b"


@given(st.text(st.sampled_from("ab./\\:~ \0"), max_size=12))
def test_whatever_is_allowed_lies_inside(name):
    try:
        path = inside("/nowhere/output", name)
    except ValueError:
        return
    assert os.path.normpath(path).startswith("/nowhere/output" + os.sep)


# --- never over another file


def test_numbers_go_on_above_those_in_use(tmp_path):
    for taken in ("x_00003_.png", "x_00007_.webp", "x_y_00009_.png", "x_00004", "xx_00010_.png"):
        (tmp_path / taken).touch()
    assert next(numbered(tmp_path / "x", ".png")).name == "x_00008_.png"
    assert next(numbered(tmp_path / "no" / "x", ".png")).name == "x_00001_.png"


@pytest.mark.parametrize("links", [True, False])
def test_no_file_is_ever_replaced(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(names.os, "link", _no_links)
    (tmp_path / "0").write_text("old")
    (tmp_path / "new").write_text("new")
    assert publish(tmp_path / "new", (tmp_path / str(i) for i in count())) == tmp_path / "1"
    assert (tmp_path / "0").read_text() == "old" and (tmp_path / "1").read_text() == "new"


def _no_links(*_):
    raise PermissionError("no links here")


def test_many_at_once_get_names_of_their_own(tmp_path):
    def save(i):
        picture = Image.new("RGB", (4, 4), (i, 0, 0))
        saved.append(save_picture(picture, numbered(tmp_path / "x", ".png"), PNG, {}))

    saved = []
    threads = [threading.Thread(target=save, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(saved)) == 24
    assert {Image.open(path).getpixel((0, 0))[0] for path in saved} == set(range(24))
    assert sorted(tmp_path.iterdir()) == sorted(saved)  # and nothing is left over


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="disk full"):
        save_picture(Image.new("RGB", (4, 4)), numbered(tmp_path / "x", ".png"), PNG, {})
    assert not list(tmp_path.iterdir())


def test_folders_get_names_of_their_own(tmp_path):
    made = [new_folder(numbered(tmp_path / "report", "")) for _ in range(3)]
    assert [path.name for path in made] == ["report_00001_", "report_00002_", "report_00003_"]


# --- metadata

TEXTS = {
    "prompt": json.dumps({"1": {"class_type": "Ä"}}),
    "workflow": json.dumps({"nodes": []}),
    "tastemaker": json.dumps({"score": 1.5}),
}


def noise(mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((40, 30), 80).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_png_holds_the_pixels_and_the_texts(tmp_path, mode):
    picture = noise(mode)
    with Image.open(save_picture(picture, [tmp_path / "a.png"], PNG, TEXTS)) as saved:
        assert saved.tobytes() == picture.tobytes() and saved.text == TEXTS


@pytest.mark.parametrize("quality", [None, 80])
def test_webp_holds_the_texts_where_comfyui_looks_for_them(tmp_path, quality):
    picture = noise()
    with Image.open(save_picture(picture, [tmp_path / "a.webp"], webp(quality), TEXTS)) as saved:
        exif = saved.getexif()
        assert (saved.tobytes() == picture.tobytes()) == (quality is None)
    assert exif[0x0110] == f"prompt:{TEXTS['prompt']}"
    assert exif[0x010F] == f"workflow:{TEXTS['workflow']}"
    assert exif[0x010E] == f"tastemaker:{TEXTS['tastemaker']}"


@pytest.mark.parametrize("how", [PNG, webp(None), webp(90)])
def test_no_texts_no_metadata(tmp_path, how):
    with Image.open(save_picture(noise(), [tmp_path / "a"], how, {})) as saved:
        assert not saved.info.get("exif") and not getattr(saved, "text", {})


def test_webp_that_would_be_too_large_is_refused(tmp_path):
    wide = Image.new("RGB", (pictures.WEBP_SIDE + 1, 1))
    with pytest.raises(ValueError, match="choose PNG"):
        save_picture(wide, [tmp_path / "a.webp"], webp(None), {})
    save_picture(wide, [tmp_path / "a.png"], PNG, {})


# --- the seed


def graph(**nodes) -> dict:
    """name=(class, inputs) -> a prompt."""
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def sampled(seed, **more) -> dict:
    return graph(
        sampler=("KSampler", {"seed": seed, "steps": 9, "model": ["model", 0]}),
        model=("CheckpointLoaderSimple", {"ckpt_name": "x"}),
        decode=("VAEDecode", {"samples": ["sampler", 0]}),
        save=("Save", {"images": ["decode", 0], "other": ["second", 0]}),
        **more,
    )


@pytest.mark.parametrize(
    "prompt, seed",
    [
        (sampled(7), 7),
        (sampled(0), 0),
        (sampled(["n", 0], n=("PrimitiveInt", {"value": 5})), 5),
        (sampled(["n", 0], n=("Seeds", {"seed": 5, "mode": "fixed"})), 5),
        (sampled(["n", 0], n=("Add", {"a": 5, "b": 6})), None),
        (sampled(7, second=("KSampler", {"seed": 8})), 7),  # of another branch
        (sampled(["second", 1], second=("Random", {"seed": 3, "value": 4})), None),
        (graph(save=("Save", {"images": ["load", 0]}), load=("LoadImage", {"image": "x"})), None),
        (graph(save=("Save", {"images": ["save", 0]})), None),
        ({}, None),
    ],
)
def test_the_seed_is_found_where_there_is_one(prompt, seed):
    assert find_seed(prompt, "save", "images") == seed


@pytest.mark.parametrize("second, seed", [(7, 7), (8, None)])
def test_two_samplers_have_one_seed_only_if_it_is_the_same(second, seed):
    prompt = graph(
        first=("KSampler", {"seed": 7}),
        second=("RandomNoise", {"noise_seed": second, "latent_image": ["first", 0]}),
        save=("Save", {"images": ["second", 0]}),
    )
    assert find_seed(prompt, "save", "images") == seed


def test_widgets_are_known_by_type_and_title():
    prompt = sampled(7)
    prompt["sampler"]["_meta"] = {"title": "My sampler"}
    found = widgets(prompt)
    assert found["KSampler"] == found["My sampler"] == {"seed": 7, "steps": 9}


# --- the table

COLUMNS = ("path", "score")


def rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_header_is_written_once(tmp_path):
    path = tmp_path / "sub" / "t.csv"
    for i in range(3):
        Table(path, COLUMNS).append((f'a,"b\n{i}é', None))
    assert [row["path"] for row in rows(path)] == [f'a,"b {i}é' for i in range(3)]
    assert path.read_text("utf-8").count("path,score") == 1


@given(st.data())
def test_whatever_a_kill_leaves_the_whole_rows_stay_readable(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    table = Table(path, COLUMNS)
    texts = data.draw(st.lists(st.text('a,"é ', max_size=6), max_size=3))
    for text in texts:
        table.append((text, 1))
    whole = path.read_bytes() if texts else b""
    table.append(('the "torn", öne', 2))
    torn = path.read_bytes()
    cut = data.draw(st.integers(len(whole), len(torn) - 1))
    path.write_bytes(torn[:cut])
    Table(path, COLUMNS).append(("next", 3))
    assert [row["path"] for row in rows(path)] == [*texts, "next"]


def test_a_table_of_someone_else_is_left_alone(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("name;score\n")
    with pytest.raises(ValueError, match="other columns"):
        Table(path, COLUMNS)
    assert path.read_text() == "name;score\n"


def _append(path, name):
    table = Table(path, COLUMNS)
    for i in range(50):
        table.append((f"{name} {i} " + "x" * 500, i))


def test_processes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "t.csv"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(row["path"][:3] for row in rows(path)) == sorted(
        f"{name} {i} "[:3] for name in "abc" for i in range(50)
    )
    assert {row["path"][-1] for row in rows(path)} == {"x"}
