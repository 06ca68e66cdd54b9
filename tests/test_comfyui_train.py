"""Train Personal Scorer in a server: from votes to a scorer that other nodes, and files, agree on."""

import json
import shutil
import time

import comfyui_sampling as s
import numpy as np
import pytest
import tiny_vit
import torch
from comfyui_server import ComfyUI, ExecutionError, interrupted
from PIL import Image, ImageFilter

from tastemaker.preferences import Comparisons, read_comparisons, write_comparisons
from tastemaker.preferences.votes import Votes
from tastemaker.scorers import load_scorer

pytestmark = pytest.mark.comfyui

NODE = "TastemakerTrainPersonalScorer"


def draw(folder, count, side=96, seed=0):
    """Pictures of random blocks, more or less soft; and how soft."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, radii = np.random.default_rng(seed), []
    for i in range(count):
        blocks = rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        radii.append(float(rng.uniform(0, 3)))
        image = Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), np.uint8)))
        image.filter(ImageFilter.GaussianBlur(radii[-1])).save(folder / f"{i:02}.png")
    return sorted(folder.glob("*.png")), radii


def compare(images, radii, count, seed=0):
    """Comparisons of one who likes them sharp."""
    rng = np.random.default_rng(seed)
    pairs = [rng.choice(len(images), 2, replace=False) for _ in range(count)]
    return Comparisons.of((images[a], images[b], float(radii[a] < radii[b])) for a, b in pairs)


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory, comfyui_release):
    """A server of this file's own: what is trained here stands in every list of scorers."""
    with ComfyUI(tmp_path_factory.mktemp("training"), comfyui_release) as server:
        yield server


@pytest.fixture(scope="module")
def compared(comfyui):
    images, radii = draw(comfyui.base / "input" / "taste", 40)
    write_comparisons(comfyui.base / "input" / "taste.csv", compare(images, radii, 200))
    return images, radii


def training(path="taste.csv", **named):
    wanted = {"votes": "a file", "votes.path": str(path), "base": "nano", "name": "my-taste"}
    given = {**wanted, "test_fraction": 0.1, "overwrite": False, **named}
    if given["votes"] != "a file":
        del given["votes.path"]
    return {"train": s.node(NODE, **given)}


def scoring(images, wire):
    """Scores images with what comes along a wire, into scored.json."""
    spec = json.dumps([{"files": [f"taste/{path.name}"]} for path in images])
    return {
        "images": s.node("ProbeImages", spec=spec),
        "score": s.node("TastemakerScoreImages", scorer=wire, images=["images", 0], preview=False),
        "dump": s.node("ProbeDump", name="scored", value=["score", 2]),
    }


def folder_of(comfyui, name):
    return comfyui.base / "models" / "tastemaker" / name


def listed(comfyui, node="TastemakerLoadScorer", name="scorer"):
    spec = comfyui.object_info(node)[node]["input"]["required"][name][1]["options"]
    return [each["key"] if isinstance(each, dict) else each for each in spec]


def test_votes_become_a_scorer_that_scores_as_its_files_do(comfyui, compared):
    images, radii = compared
    entry = comfyui.run(training() | scoring(images[:6], ["train", 0]))
    folder = folder_of(comfyui, "my-taste")
    own = load_scorer(folder, device="cpu")
    expected = own.score(
        images[:6]
    )  # as many at once: in batches of another size the last bit differs
    assert torch.equal(torch.tensor(s.dumped(comfyui, "scored")), expected)
    assert torch.corrcoef(torch.stack([own.score(images), -torch.tensor(radii)]))[0, 1] > 0.9
    assert "models/tastemaker/my-taste" in listed(comfyui)
    loaded = {"load": s.node("TastemakerLoadScorer", scorer="models/tastemaker/my-taste")}
    loaded["load"]["inputs"]["scorer.dtype"] = "auto"
    comfyui.run(loaded | scoring(images[:6], ["load", 0]))
    assert torch.equal(torch.tensor(s.dumped(comfyui, "scored")), expected)
    report = s.said(entry, "train")
    found = json.loads((folder / "config.json").read_text())["metrics"]
    assert "my-taste: a head on nano, trained on" in report
    assert f"Right in {found['held_out']['accuracy']:.1%} (95 %: " in report
    assert f"nano in {found['base']['accuracy']:.1%}" in report
    (picture,) = comfyui.files(entry, "train")
    assert Image.open(picture).size == (900, 480)


def test_copies_are_kept_below_unless_told_otherwise(comfyui, compared):
    def robust():
        config = json.loads((folder_of(comfyui, "switched") / "config.json").read_text())
        return config["training"]["robust"]

    comfyui.run(training(name="switched"))
    assert robust()
    with pytest.raises(ExecutionError, match="another choice of robust: choose another name"):
        comfyui.run(training(name="switched", robust=False))
    assert robust()
    comfyui.run(training(name="switched", robust=False, overwrite=True))
    assert not robust()


def test_it_trains_again_when_the_votes_have_changed(comfyui, compared):
    images, radii = compared
    path = comfyui.base / "input" / "changing.csv"
    write_comparisons(path, compare(images, radii, 120, seed=1))
    prompt = training("changing.csv", name="retrained", test_fraction=0)
    first = comfyui.run(prompt)
    assert "by cross-validation, since nothing was held out" in s.said(first, "train")
    assert comfyui.executed(comfyui.run(prompt)) == set()
    card = load_scorer(folder_of(comfyui, "retrained"), device="cpu").card
    comfyui.free()
    comfyui.run(prompt)  # nothing is remembered: it is made again, of the same
    assert load_scorer(folder_of(comfyui, "retrained"), device="cpu").card == card
    write_comparisons(path, compare(images, radii, 121, seed=1))
    with pytest.raises(ExecutionError, match="made of other comparisons, another base or"):
        comfyui.run(prompt)
    assert load_scorer(folder_of(comfyui, "retrained"), device="cpu").card == card
    prompt["train"]["inputs"]["overwrite"] = True
    assert comfyui.executed(comfyui.run(prompt)) == {"train"}
    assert load_scorer(folder_of(comfyui, "retrained"), device="cpu").card != card


def test_the_pages_store_is_in_the_menu(comfyui, compared):
    images, radii = compared
    path = comfyui.base / "home" / "votes" / "taste-123.sqlite"
    store = Votes(path, images[0].parent)
    rows = {frozenset((a, b)): (a, b, p) for a, b, p in compare(images, radii, 60, seed=2).rows()}
    *votes, last = rows.values()  # each pair once
    for a, b, p in votes:
        store.add("me", a, b, "left" if p else "right")
    own = "voting page: taste-123.sqlite"
    assert listed(comfyui, NODE, "votes") == ["a file", own]
    prompt = training(votes=own, name="of-the-page", test_fraction=0)
    comfyui.run(prompt)
    config = json.loads((folder_of(comfyui, "of-the-page") / "config.json").read_text())
    assert config["data"]["comparisons"] == len(votes) == len(read_comparisons(path)[0])
    assert comfyui.executed(comfyui.run(prompt)) == set()
    store.add("me", last[0], last[1], "tie")
    prompt["train"]["inputs"]["overwrite"] = True
    assert comfyui.executed(comfyui.run(prompt)) == {"train"}, "one more vote"


def test_two_voters_are_not_one_taste(comfyui, compared):
    images, radii = compared
    store = Votes(comfyui.base / "input" / "shared.sqlite", images[0].parent)
    rows = {frozenset((a, b)): (a, b, p) for a, b, p in compare(images, radii, 40, seed=4).rows()}
    for a, b, p in rows.values():
        store.add("me", a, b, "left" if p else "right")
    for a, b, p in list(rows.values())[:9]:
        store.add("bob", a, b, "right" if p else "left")
    prompt = training("shared.sqlite", name="of-one", test_fraction=0)
    several = rf"several: me \({len(rows)}\), bob \(9\); name one"
    with pytest.raises(ExecutionError, match=several):
        comfyui.run(prompt)
    prompt["train"]["inputs"]["voter"] = "bob"
    comfyui.run(prompt)
    config = json.loads((folder_of(comfyui, "of-one") / "config.json").read_text())
    assert config["data"]["comparisons"] == 9


def test_what_has_an_embedding_is_a_base(comfyui, compared):
    images, _ = compared
    bases = listed(comfyui, NODE, "base")
    assert bases[:3] == ["nano", "joyquality", "rali"]
    assert "models/tastemaker/my-taste" in bases and not any("q-realign" in b for b in bases)
    second = training(base="models/tastemaker/my-taste", name="second")
    comfyui.run(second)
    assert load_scorer(folder_of(comfyui, "second"), device="cpu").base.card.name == "my-taste"
    tiny_vit.make_joyquality().save_pretrained(folder_of(comfyui, "siglip"))
    assert "models/tastemaker/siglip" in listed(comfyui, NODE, "base")
    own = training(base="models/tastemaker/siglip", name="on-siglip")
    comfyui.run(own | scoring(images[:6], ["train", 0]))
    expected = load_scorer(folder_of(comfyui, "on-siglip"), device="cpu").score(images[:6])
    assert torch.allclose(torch.tensor(s.dumped(comfyui, "scored")), expected, atol=1e-6)
    with pytest.raises(ExecutionError, match="my-taste is what the base rests on"):
        comfyui.run(training(base="models/tastemaker/second", overwrite=True))


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/b", "..", ".hidden", "a\\b", "C:x", "", "x.json", "nul"]
)
def test_a_name_that_leads_elsewhere_is_refused(comfyui, compared, name):
    before = sorted(comfyui.base.rglob("config.json"))
    with pytest.raises(ExecutionError, match="name: "):
        comfyui.run(training(name=name))
    assert sorted(comfyui.base.rglob("config.json")) == before


def test_a_link_that_leads_out_is_refused(comfyui, compared):
    outside = comfyui.base / "outside"
    outside.mkdir(exist_ok=True)
    folder_of(comfyui, "link").symlink_to(outside, target_is_directory=True)
    with pytest.raises(ExecutionError, match="name: .*leads out"):
        comfyui.run(training(name="link"))
    folder_of(comfyui, "link").unlink()
    assert list(outside.iterdir()) == []


def test_only_a_personal_scorer_is_replaced(comfyui, compared):
    other = folder_of(comfyui, "not-personal")
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "siglip"}')
    for overwrite in (False, True):
        with pytest.raises(ExecutionError, match="did not write, which is never overwritten"):
            comfyui.run(training(name="not-personal", overwrite=overwrite))
    assert (other / "config.json").read_text() == '{"model_type": "siglip"}'
    shutil.rmtree(other)


def test_what_is_wrong_with_the_votes_is_said_in_a_line(comfyui, compared):
    images, _ = compared
    folder = comfyui.base / "input"
    (folder / "probabilities.json").write_text('{"train": [["a.png", "b.png", 0.7]]}')
    write_comparisons(folder / "gone.csv", Comparisons.of([(images[0], folder / "gone.png", 1)]))
    write_comparisons(folder / "one.csv", Comparisons.of([(images[0], images[1], 1)]))
    write_comparisons(folder / "self.csv", Comparisons.of([(images[0], images[0], 1)]))
    (folder / "broken.png").write_bytes(b"no picture")
    write_comparisons(
        folder / "broken.csv", Comparisons.of([(images[0], folder / "broken.png", 1)])
    )
    wrong = {
        "": "votes: give the path of a",
        "nowhere.csv": "no such file: .*nowhere.csv",
        "probabilities.json": "a label is 1",
        "gone.csv": r"no such file \(1\): .*gone.png",
        "one.csv": r"cannot be divided .*\(--test-fraction 0\)",
        str(folder): "a folder, not a file of comparisons",
    }
    for path, message in wrong.items():
        with pytest.raises(ExecutionError, match=message):
            comfyui.run(training(path, name="wrong"))
    for path, message in {"self.csv": "no comparison of two", "broken.csv": "broken.png"}.items():
        with pytest.raises(ExecutionError, match=message):
            comfyui.run(training(path, name="wrong", test_fraction=0))
    assert not folder_of(comfyui, "wrong").exists()


def test_interrupted_it_writes_nothing_and_goes_on_from_there(comfyui):
    images, radii = draw(comfyui.base / "input" / "many", 60, side=768, seed=5)
    write_comparisons(comfyui.base / "input" / "many.csv", compare(images, radii, 200))
    prompt = training("many.csv", name="many", test_fraction=0)
    job = comfyui.queue(prompt)
    comfyui.wait_until_running(job)
    kept = comfyui.base / "home" / "embeddings"
    before, deadline = size_of(kept), time.monotonic() + 60
    while size_of(kept) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    comfyui.interrupt()
    assert interrupted(comfyui.wait(job, check=False))
    assert not folder_of(comfyui, "many").exists()
    comfyui.run(prompt)
    assert folder_of(comfyui, "many").is_dir()


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*"))


def test_it_chooses_and_guides_while_images_are_made(comfyui, compared):
    """As Best of N Sampler's judge, and as Reward Guidance's, by its gradient."""
    wires = {**s.wires(vae=["vae", 0], scorer=["train", 0]), **s.CHOICE}
    graph = {**training(), **s.prompt(best=("TastemakerBestOfN", wires), save=s.save("best", 1))}
    graph["scores"] = s.node("ProbeDump", name="scores", value=["best", 3])
    entry = comfyui.run(graph)
    (scores,) = s.dumped(comfyui, "scores")
    values = scores["values"]["values"]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    assert "my-taste gives those kept" in s.said(entry)
    for seed in (10, 11):
        assert reward(comfyui, 0.1, seed) > reward(comfyui, 0.0, seed)


def reward(comfyui, strength, seed):
    """The personal score of what the probe's MODEL makes under so much guidance."""
    how = dict(strength=strength, window_start=1.0, window_end=0.0, stop_on_gap=False)
    guide = dict(model=["model", 0], scorer=["train", 0], vae=["vae", 0], **how)
    graph = s.prompt(
        guided=("TastemakerRewardGuidance", guide),
        sample=("KSampler", s.wires(model=["guided", 0], seed=seed, steps=8)),
        decode=("VAEDecode", {"samples": ["sample", 0], "vae": ["vae", 0]}),
        score=(
            "TastemakerScoreImages",
            {"scorer": ["train", 0], "images": ["decode", 0], "preview": False},
        ),
        dump=("ProbeDump", {"name": "reward", "value": ["score", 2]}),
    )
    comfyui.run({**training(), **graph})
    (value,) = s.dumped(comfyui, "reward")
    return value


@pytest.mark.parametrize("vue", [False, True])
def test_the_page_shows_what_was_learned(comfyui, compared, comfyui_page, vue):
    page = comfyui_page
    page.setting("Comfy.VueNodes.Enabled", vue)
    try:
        widgets = {"votes.path": "taste.csv", "name": f"of-the-web-{vue}"}
        script = """
            const node = LiteGraph.createNode(arguments[0]);
            app.graph.add(node);
            for (const [name, value] of Object.entries(arguments[1]))
                node.widgets.find((widget) => widget.name === name).value = value;
            return node.id;
        """
        number = page.js(script, NODE, widgets)
        page.calm()
        assert page.complaints() == [] and page.cut_off() == []
        entry = page.run()
        page.calm()
        assert page.previews(number) == [(900, 480)]
        assert page.complaints() == [] and page.console() == []
        assert "Right in" in s.said(entry, str(number))
    finally:
        page.setting("Comfy.VueNodes.Enabled", False)
