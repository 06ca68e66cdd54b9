"""Score Video: the file's score, by frames or by a video, judged alone or together."""

import json
from itertools import count

import numpy as np
import pytest
import torch
from comfyui_server import ExecutionError
from PIL import Image
from tiny_qwen import write_checkpoint

from tastemaker import load_scorer
from tastemaker.scorers.video import read_video, uniform_indices

pytestmark = pytest.mark.comfyui

RUNS = count()  # what is cached writes no file
NAMES = ("scores", "score", "frame_scores")
Q = {"scorer": "models/tastemaker/video-q", "scorer.task": "quality", "scorer.dtype": "auto"}
Q |= {"scorer.max_pixels": 0, "scorer.prompt_style": "card"}


@pytest.fixture(scope="module")
def clip(comfyui, tmp_path_factory):
    """A video of 12 frames in the input folder, ever noisier; its pixels are RGB.

    So everyone decodes the same: of YUV, ComfyUI and others make slightly different pixels.
    """
    import av  # ComfyUI needs it itself

    path = tmp_path_factory.mktemp("clip") / "score-video.mov"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        for i in range(12):
            step = np.mgrid[0:64, 0:96].sum(0)[..., None] * [1, 0.5, 1.5]
            pixels = (step + rng.normal(0, 6 * i, (64, 96, 3))).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    comfyui.put(path)
    return path


@pytest.fixture(scope="module")
def tiny(comfyui):
    folder = comfyui.base / "models" / "tastemaker" / "video-q"
    write_checkpoint(folder)
    return folder


def graph(source: dict, frames=8, load=None, run=0, more=None) -> dict:
    """Node 4 scores what node 1 makes: {"images": ...} or {"video": ...}."""
    (kind, maker), *_ = source.items()
    prompt = {
        "1": maker,
        "3": {"class_type": "TastemakerLoadScorer", "inputs": load or {"scorer": "nano"}},
        "4": {
            "class_type": "TastemakerScoreVideo",
            "inputs": {"scorer": ["3", 0], "frames": frames, kind: ["1", 0]},
        },
        **(more or {}),
    }
    for i, name in enumerate(NAMES):
        inputs = {"name": f"video-{run}-{name}", "value": ["4", i]}
        prompt[f"{10 + i}"] = {"class_type": "ProbeDump", "inputs": inputs}
    return prompt


def loaded(path) -> dict:
    return {"video": {"class_type": "LoadVideo", "inputs": {"file": path.name}}}


def noise(**part) -> dict:
    return {"images": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps([part])}}}


def score(comfyui, source, **how) -> tuple[dict, float, list[float], dict]:
    """The entry; the score, the frames' scores and the card that came out."""
    run = next(RUNS)
    entry = comfyui.run(graph(source, run=run, **how))
    files = [comfyui.output / f"video-{run}-{name}.json" for name in NAMES]
    scores, (value,), each = (json.loads(file.read_text()) for file in files)
    assert np.float32(value) == np.float32(scores[0]["values"]["values"][0]) or np.isnan(value)
    return entry, value, each, scores[0]["card"]


@pytest.mark.parametrize("frames", [8, 1, 20])
def test_a_video_scores_as_its_file(comfyui, clip, frames):
    entry, value, each, card = score(comfyui, loaded(clip), frames=frames)
    nano, pixels = load_scorer("nano"), read_video(clip, frames)
    assert value == pytest.approx(float(nano.score_video(pixels[None])), abs=1e-5)
    assert each == pytest.approx(nano.score(list(pixels)).tolist(), abs=1e-5)
    assert len(each) == frames and card["name"] == "nano"
    (shown,) = comfyui.files(entry, "4")
    with Image.open(shown) as strip:
        assert strip.width > 90 and strip.height > 64


def test_all_frames(comfyui, clip):
    _, value, each, _ = score(comfyui, loaded(clip), frames=0)
    expected = load_scorer("nano").score(list(read_video(clip, 12)))
    assert each == pytest.approx(expected.tolist(), abs=1e-5)
    assert value == pytest.approx(expected.mean().item(), abs=1e-5)


def test_frames_and_a_video_of_them_score_the_same(comfyui):
    images = noise(count=10, height=40, width=40, seed=5)
    _, value, each, _ = score(comfyui, images, frames=4)
    video = {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": 10.0}}
    more = {"2": images["images"]}
    assert score(comfyui, {"video": video}, frames=4, more=more)[1:3] == (value, each)
    alone = {"class_type": "TastemakerScoreImages", "inputs": {"preview": False}}
    alone["inputs"] |= {"scorer": ["3", 0], "images": ["1", 0]}
    dump = {"class_type": "ProbeDump", "inputs": {"name": "video-alone", "value": ["5", 2]}}
    comfyui.run(graph(images, frames=4, more={"5": alone, "6": dump}))
    scores = json.loads((comfyui.output / "video-alone.json").read_text())
    assert each == pytest.approx([scores[i] for i in uniform_indices(10, 4)], abs=1e-5)


@pytest.mark.parametrize("frames", [8, 3, 0])
def test_q_realign_sees_the_frames_together(comfyui, clip, tiny, frames):
    _, value, each, card = score(comfyui, loaded(clip), frames=frames, load=Q)
    scorer = load_scorer(tiny, task="video", video_frames=frames or None)
    pixels = read_video(clip, frames or 12)
    assert value == pytest.approx(float(scorer.score_video(pixels[None])), abs=1e-5)
    assert each == [value] and card["task"] == "video"
    assert card["fingerprint"]["video"].startswith(f"{frames or 12} frames")


def test_the_number_of_frames_matters_to_q_realign(comfyui, clip, tiny):
    values = {score(comfyui, loaded(clip), frames=n, load=Q)[1] for n in (1, 4, 8)}
    assert len(values) == 3


def test_a_frame_that_is_not_finite(comfyui, clip, tiny):
    for load in (None, Q):
        images = noise(count=4, height=64, width=64, nan=[0])
        _, value, *_ = score(comfyui, images, frames=2, load=load)
        assert np.isnan(value)


@pytest.mark.parametrize("kinds", [(), ("images", "video")])
def test_one_of_images_and_video(comfyui, clip, kinds):
    prompt = graph(loaded(clip), more={"2": noise(count=2)["images"]})
    prompt["4"]["inputs"].pop("video")
    links = {"images": ["2", 0], "video": ["1", 0]}
    prompt["4"]["inputs"] |= {kind: links[kind] for kind in kinds}
    with pytest.raises(ExecutionError, match="connect either images"):
        comfyui.queue(prompt)


def test_no_frames(comfyui):
    with pytest.raises(ExecutionError, match="no frames"):
        comfyui.run(graph(noise(count=0)))


def test_the_mean_of_scores_is_the_scorers_own():
    nano, frames = load_scorer("nano"), torch.rand(1, 3, 3, 40, 40)
    assert nano.judges_frames_alone
    assert nano.score_video(frames) == pytest.approx(nano(frames[0]).mean().item(), abs=1e-5)
