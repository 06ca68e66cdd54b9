"""The demo's loop on the embedded generator: what it makes, what it costs, and the page that shows it."""

import re

import pytest
import torch

pytest.importorskip("diffusers")

from tastemaker.demo import loop as demo
from tastemaker.demo import page
from tastemaker.demo.generator import GUIDANCE_SCALE, load_pipeline
from tastemaker.demo.rewards import load_reward

PLAIN, BEST, PRUNED, GUIDED, BOTH = range(len(demo.WAYS))
PROMPTS, STEPS = ("a red star", "a shape"), 8


@pytest.fixture(scope="module")
def loop():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PROMPTS", PROMPTS)
        patch.setattr(demo, "STEPS", STEPS)
        yield demo.run_loop(seed=3, progress=False)


def test_every_prompt_has_an_image_of_every_way(loop):
    assert tuple(loop.images) == PROMPTS
    for made in loop.images.values():
        assert len(made) == len(demo.WAYS) and {x.image.size for x in made} == {(32, 32)}


def test_the_plain_image_is_the_plain_pipeline_s(loop):
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    alone = pipe(
        PROMPTS[0],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    difference = demo.pixels(alone) - demo.pixels(loop.images[PROMPTS[0]][PLAIN].image)
    assert difference.abs().max() <= 1 / 255, "but for rounding: it was made in a batch"


def test_scores_are_those_of_the_images(loop):
    guiding, held_out = load_reward("guiding"), load_reward("held-out")
    for made in loop.images.values():
        for x in made:
            pixels = demo.pixels(x.image)[None]
            assert x.guiding == pytest.approx(float(guiding(pixels)), abs=1e-6)
            assert x.held_out == pytest.approx(float(held_out(pixels)), abs=1e-6)


def test_the_best_is_the_best_and_guidance_gains(loop):
    for made in loop.images.values():
        assert made[BEST].guiding >= max(made[PLAIN].guiding, made[PRUNED].guiding) - 1e-3
    mean = [sum(made[way].guiding for made in loop.images.values()) for way in range(5)]
    assert mean[GUIDED] > mean[PLAIN] and mean[PRUNED] > mean[PLAIN]


def test_what_each_way_costs(loop):
    assert loop.calls[PLAIN] == loop.calls[GUIDED] == STEPS
    assert loop.calls[BEST] == demo.N * STEPS
    assert STEPS < loop.calls[PRUNED] < 0.5 * loop.calls[BEST]
    assert loop.calls[BOTH] == loop.calls[PRUNED] + STEPS


def test_the_page_shows_all_of_it(loop, tmp_path):
    page.write_page(tmp_path / "page.html", loop)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("<td><img ") == len(PROMPTS) * len(demo.WAYS)
    assert html.count("<figure>") == len(loop.records) == 2
    for text in (*PROMPTS, *demo.WAYS, f"{STEPS} denoiser calls"):
        assert text in html
    assert not re.search(r'(src|href)="(?!data:)', html), "nothing is loaded from elsewhere"
