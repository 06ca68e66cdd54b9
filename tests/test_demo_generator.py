"""The embedded generator, its reward models, and the world they come from."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.demo import learn_rewards, realism, shapes
from tastemaker.demo.generator import GUIDANCE_SCALE, WEIGHTS, load_pipeline
from tastemaker.demo.recognise import recognised
from tastemaker.demo.rewards import NAMES, load_reward
from tastemaker.demo.shapes import COLOURS, SHAPES, SIDE, draw
from tastemaker.demo.tokenizer import END, learn_merges

DEMO = Path(__file__).resolve().parents[1] / "demo"
MADE = json.loads((DEMO / "weights" / "made.json").read_text(encoding="utf-8"))


# --- the world


def test_a_seed_decides_the_pictures():
    first, again, other = draw(8, seed=1), draw(8, seed=1), draw(8, seed=2)
    assert torch.equal(first.images, again.images) and first.captions == again.captions
    assert all(torch.equal(a, b) for a, b in zip(first.attributes, again.attributes, strict=True))
    assert not torch.equal(first.images, other.images)


@given(st.integers(0, 2**40), st.integers(1, 9))
def test_pictures_are_pictures_of_what_their_attributes_say(seed, n):
    images, captions, a = draw(n, seed)
    assert images.shape == (n, 3, SIDE, SIDE) and len(captions) == n
    assert images.min() >= 0 and images.max() <= 1
    assert (a.colour != a.ground).all()
    # The shape is whole: nothing of it is at the edge, where the ground is.
    assert (a.centre - a.radius[:, None] >= 0).all() and (
        a.centre + a.radius[:, None] <= SIDE
    ).all()
    rows = a.centre.long()
    middle = images[torch.arange(n), :, rows[:, 1], rows[:, 0]]
    assert (middle - a.rgb).abs().max() < 0.15, "the middle of every shape is in the shape"
    for i, caption in enumerate(captions):
        words = caption.split()
        assert set(words) <= set(shapes.WORDS)
        assert words[-1] != "on" and words[0] == "a"
        named = [word for word in words if word in SHAPES]
        assert named in ([], [SHAPES[a.shape[i]]])
        ground = words[words.index("on") + 1 :] if "on" in words else []
        assert ground in ([], [list(COLOURS)[a.ground[i]]])


def test_each_part_of_a_caption_is_said_and_left_out():
    captions = draw(400, seed=3).captions
    for word in shapes.WORDS:
        share = sum(word in caption.split() for caption in captions) / len(captions)
        assert 0.02 < share < 0.98 or word == "a", (word, share)


def test_taste_is_of_the_shape_and_not_of_the_mean_colour():
    images, _, a = draw(4000, seed=4)
    taste = a.taste()
    assert abs(taste.mean()) < 0.05 and 0.45 < taste.std() < 0.6
    mean_warmth = (images[:, 0] - images[:, 2]).mean((1, 2))
    assert torch.corrcoef(torch.stack([mean_warmth, taste]))[0, 1].abs() < 0.3
    for part in (a.rgb[:, 0] - a.rgb[:, 2], a.radius, -(a.centre - SIDE / 2).norm(dim=1)):
        assert torch.corrcoef(torch.stack([part, taste]))[0, 1] > 0.3


# --- the tokenizer


@given(st.lists(st.text("abcde", min_size=1, max_size=8), min_size=1, max_size=8))
def test_merges_make_one_piece_of_every_word(words):
    merges = learn_merges(words)
    assert len(set(merges)) == len(merges)
    for word in words:
        pieces = [*word[:-1], word[-1] + END]
        for left, right in merges:  # in the order in which byte-pair encoding applies them
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [left + right]
                i += 1
        assert pieces == [word + END]


# --- the weights


def test_the_weights_are_what_the_script_makes_with_its_defaults():
    train = pytest.importorskip("tastemaker.demo.train")
    assert set(MADE) == set(train.PARTS)
    for part in train.PARTS:
        assert MADE[part]["settings"] == asdict(train.SETTINGS[part])
        listed = {f.relative_to(DEMO / "weights").as_posix(): f for f in train.files(part)}
        assert set(MADE[part]["sha256"]) == set(listed) and listed
        for name, file in listed.items():
            assert MADE[part]["sha256"][name] == hashlib.sha256(file.read_bytes()).hexdigest()
    weights = {f.relative_to(DEMO / "weights").as_posix() for f in DEMO.rglob("*.safetensors")}
    assert weights == {name for part in MADE.values() for name in part["sha256"]}


def test_the_demo_is_small():
    files = [f for f in DEMO.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in files) <= 8_000_000


def test_no_place_on_a_machine_is_in_the_weights():
    for file in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in file.read_text(encoding="utf-8"), file


def test_the_table_is_of_these_weights():
    table = (DEMO / "results.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"{MADE['rewards']['measured'][name]['correlation']:.4f}" in table
    assert f"{MADE['vae']['measured']['copying error']:.4f}" in table


# --- the reward models


@pytest.fixture(scope="module", params=NAMES)
def reward(request):
    return load_reward(request.param)


@pytest.fixture(scope="module")
def drawing():
    return draw(1000, seed=7_000_000)


def test_rewards_know_the_truth(reward, drawing):
    scores = reward(drawing.images)
    assert torch.corrcoef(torch.stack([scores, drawing.attributes.taste()]))[0, 1] >= 0.95
    assert abs(scores.mean()) < 0.1 and 0.3 <= scores.std() <= 1


def test_rewards_see_through_noise(reward, drawing):
    noise = 0.1 * torch.randn(drawing.images.shape, generator=torch.Generator().manual_seed(0))
    scores = reward((drawing.images + noise).clamp(0, 1))
    assert torch.corrcoef(torch.stack([scores, drawing.attributes.taste()]))[0, 1] >= 0.9


def test_rewards_score_a_picture_the_same_alone_and_in_a_batch(reward, drawing):
    alone = torch.cat([reward(image[None]) for image in drawing.images[:8]])
    torch.testing.assert_close(reward(drawing.images[:8]), alone, rtol=0, atol=1e-5)
    assert alone.shape == (8,) and alone.dtype == torch.float32
    assert reward(drawing.images[:0]).shape == (0,)


def test_rewards_have_a_gradient_for_pixels_and_none_for_weights(reward, drawing):
    x = drawing.images[:4].clone().requires_grad_()
    reward(x).sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None for p in reward.parameters())
    with torch.no_grad():  # a step uphill scores more
        assert (reward((x + 0.02 * x.grad.sign()).clamp(0, 1)) > reward(x)).all()


def test_rewards_take_any_size_and_have_a_card(reward, drawing):
    large = torch.nn.functional.interpolate(drawing.images[:64], scale_factor=3, mode="bilinear")
    small = reward(drawing.images[:64])
    assert torch.corrcoef(torch.stack([reward(large), small]))[0, 1] > 0.95
    card = reward.card
    assert card.parameters <= 100_000 and card.name.removeprefix("demo-") in NAMES
    assert card.fingerprint["weights"] and card.tasks == ("taste",)


def test_the_two_rewards_are_not_one(drawing):
    guiding, held_out = (load_reward(name) for name in NAMES)
    assert [*guiding.state_dict()] != [*held_out.state_dict()]
    assert guiding.card.fingerprint_id != held_out.card.fingerprint_id
    truth = drawing.attributes.taste()
    errors = torch.stack([scorer(drawing.images) - truth for scorer in (guiding, held_out)])
    assert torch.corrcoef(errors)[0, 1] < 0.9, "they are wrong about different pictures"
    seeds = [range(first, first + MADE["rewards"]["settings"]["steps"]) for first in _first_seeds()]
    assert not set(seeds[0]) & set(seeds[1])


def _first_seeds():
    return learn_rewards.FIRST_SEED.values()


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="guiding and held-out, not 'other'"):
        load_reward("other")


# --- realism


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**31))
def test_nearest_is_the_nearest(n, k, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    images, real = (torch.rand(count, 3, 4, 5, generator=g) for count in (n, k))
    distance, index = realism.nearest(images, real, chunk)
    every = (images[:, None] - real[None]).square().mean((2, 3, 4)).sqrt()
    torch.testing.assert_close(distance, every.min(1).values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(every[torch.arange(n), index], distance, rtol=1e-4, atol=1e-6)


def test_a_real_picture_is_its_own_nearest_and_gets_its_own_taste():
    real = draw(200, seed=5)
    found = realism.realism(real.images[40:60], real)
    assert (found.distance == 0).all()
    assert torch.equal(found.taste, real.attributes.taste()[40:60])


def test_realism_tells_real_pictures_from_others():
    real = realism.real_pictures(2048)
    baseline = realism.real_realism(real, 64)
    noise = torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert realism.realism(noise, real).distance.min() > baseline.distance.max()
    truth = draw(64, realism.OTHER_SEED).attributes.taste()
    assert torch.corrcoef(torch.stack([baseline.taste, truth]))[0, 1] > 0.6


def test_realism_of_nothing_and_of_another_size():
    real = draw(4, seed=5)
    assert realism.realism(real.images[:0], real).distance.shape == (0,)
    with pytest.raises(ValueError, match=r"images are \[3, 16, 16\], the real ones \[3, 32, 32\]"):
        realism.realism(torch.rand(1, 3, 16, 16), real)


# --- the generator


@pytest.fixture(scope="module")
def pipe():
    pytest.importorskip("diffusers")
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, prompts, steps=20, first_seed=0, **named):
    named = {"guidance_scale": GUIDANCE_SCALE, **named}
    seeds = range(first_seed, first_seed + len(prompts))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(
        prompts, num_inference_steps=steps, generator=generators, output_type="pt", **named
    ).images


def shape_colours(images):
    """Names of the colours of the shapes: of what differs most from the ground, which is at the edge."""
    palette = torch.tensor(list(COLOURS.values()))
    edge = torch.ones(SIDE, SIDE, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    names = []
    for image in images:
        ground = image[:, edge].median(1).values
        pixels = image.flatten(1).T  # [P, 3]
        far = (pixels - ground).norm(dim=1)
        shape = pixels[far > 0.7 * far.max()].median(0).values
        names.append(list(COLOURS)[(palette - shape).norm(dim=1).argmin()])
    return names


def test_the_check_of_colours_is_right_about_real_pictures():
    images, _, a = draw(300, seed=8_000_000)
    truth = [list(COLOURS)[i] for i in a.colour]
    right = [found == true for found, true in zip(shape_colours(images), truth, strict=True)]
    assert sum(right) / len(right) >= 0.95


def test_it_opens_with_plain_diffusers():
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(WEIGHTS)
    assert type(pipe) is diffusers.StableDiffusionPipeline and pipe.safety_checker is None
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=2).images[0]
    assert image.size == (SIDE, SIDE)


def test_every_word_is_one_token(pipe):
    for word in shapes.WORDS:
        assert len(pipe.tokenizer(word).input_ids) == 3, word
    longest = pipe.tokenizer("a large red star on blue").input_ids
    assert len(longest) == pipe.tokenizer.model_max_length
    assert len({pipe.tokenizer(word).input_ids[1] for word in shapes.WORDS}) == len(shapes.WORDS)


def test_prompts_are_obeyed(pipe):
    names = list(COLOURS)
    asked = [names[i % 8] for i in range(32)]
    grounds = [names[(i + 1 + i // 8) % 8] for i in range(32)]
    prompts = [
        f"a large {colour} {SHAPES[i % 5]} on {ground}"
        for i, (colour, ground) in enumerate(zip(asked, grounds, strict=True))
    ]
    found = shape_colours(generate(pipe, prompts))
    right = sum(a == b for a, b in zip(asked, found, strict=True))
    assert right >= 0.9 * 32, list(zip(prompts, found, strict=True))


@pytest.mark.slow
def test_shapes_are_the_ones_that_were_asked_for(pipe):
    found = recognised(pipe, each=16)
    assert found["drawn"] >= 0.98 and found["copied"] >= 0.95, found
    assert found["generated"] >= 0.85, found


def test_pictures_differ_and_a_generator_decides_them(pipe):
    images = generate(pipe, ["a red circle"] * 4, steps=8)
    assert torch.equal(images, generate(pipe, ["a red circle"] * 4, steps=8))
    assert torch.pdist(images.flatten(1)).min() / images[0].numel() ** 0.5 > 0.05


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_other_schedulers_draw_the_same_world(pipe, name):
    diffusers = pytest.importorskip("diffusers")
    own, prompts = pipe.scheduler, [f"a large {colour} circle" for colour in COLOURS]
    pipe.scheduler = getattr(diffusers, name).from_config(own.config)
    try:
        found = shape_colours(generate(pipe, prompts, steps=12))
    finally:
        pipe.scheduler = own
    assert sum(a == b for a, b in zip(COLOURS, found, strict=True)) >= 6, found


def test_generated_pictures_are_nearly_real(pipe):
    captions = draw(48, seed=9_000_000).captions
    real = realism.real_pictures(4096)
    generated = realism.realism(generate(pipe, captions), real).distance.mean()
    assert generated <= 1.05 * realism.real_realism(real, 256).distance.mean()


def test_without_diffusers_the_error_names_the_command():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        f"sys.path.insert(0, {str(DEMO.parent / 'tests')!r})\n"
        "import conftest\n"
        "from tastemaker.demo.generator import load_pipeline\n"
        "from tastemaker.demo import realism, rewards, shapes\n"
        "try: load_pipeline()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "tastemaker[diffusers]"' in done.stdout
