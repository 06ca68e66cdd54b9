"""Q-ReAlign beside the official recipe, on a tiny random model of the real class."""

import json
import logging
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_qwen import (
    CARD,
    WEIGHTS,
    Official,
    as_single_file,
    make_tokenizer,
    write_checkpoint,
)

from tastemaker.scorers import qwen_text
from tastemaker.scorers.qrealign import load_qrealign
from tastemaker.scorers.qrealign_prompt import level_ids

EXACT = 1e-5  # float32, the same pixels
NO_RESIZE = [(256, 320), (512, 256), (320, 320)]
RESIZED = [(300, 517), (123, 180), (719, 283), (40, 1000)]


def load(folder, task="quality", device="cpu", dtype=None, **options):
    device = torch.device(device)
    return load_qrealign(folder, revision=None, task=task, device=device, dtype=dtype, **options)


def pictures(sizes, seed=0, grain=12) -> list[Image.Image]:
    """Pictures between smooth and noisy, dark and bright, of (height, width) sizes."""
    rng = np.random.default_rng(seed)
    made = []
    for i, (height, width) in enumerate(sizes):
        low = rng.integers(0, 256, (2 + 3 * i, 3 + i, 3), dtype=np.uint8)
        smooth = np.array(Image.fromarray(low).resize((width, height), Image.BICUBIC), dtype=float)
        noisy = smooth * (0.4 + 0.2 * (i % 4)) + rng.normal(0, grain * (i % 3), smooth.shape)
        made.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return made


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def unit(picture: Image.Image) -> torch.Tensor:
    return tensor(picture).float() / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("half") / "checkpoint", torch.bfloat16)


@pytest.fixture(scope="module")
def official(folder):
    return Official.load(folder)


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


def assert_close(ours, reference, tolerance=EXACT):
    torch.testing.assert_close(ours, torch.as_tensor(reference), atol=tolerance, rtol=0)


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["quality", "aesthetics"])
def test_equals_the_card_where_nothing_is_resized(folder, official, task):
    scorer = load(folder, task)
    for picture in pictures(NO_RESIZE):
        assert_close(scorer(unit(picture)[None]), [official.score(picture, task)])


def test_equals_the_card_from_files(scorer, official, tmp_path):
    made = pictures(NO_RESIZE + RESIZED)
    paths = [tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(len(made))]
    for picture, path in zip(made, paths, strict=True):
        picture.save(path, quality=95)
    scores = scorer.score(paths, batch_size=2)
    reference = [official.score(Image.open(path).convert("RGB")) for path in paths]
    assert max(reference) - min(reference) > 100 * 1e-3
    assert_close(scores, reference)


def test_the_torchvision_backend_is_within_a_hundredth_of_the_spread(scorer, folder):
    """The named limit of exactness: torchvision rounds otherwise than Pillow when it resizes."""
    official = Official.load(folder, resizer="torchvision")
    made = pictures(RESIZED * 2, grain=2)
    reference = [official.score(picture) for picture in made]
    assert_close(scorer.score(made), reference, (max(reference) - min(reference)) / 100)
    same = [official.score(picture) for picture in pictures(NO_RESIZE)]
    assert_close(scorer.score(pictures(NO_RESIZE)), same)


def test_a_batch_scores_as_each_alone(scorer):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 5)])
    alone = torch.cat([scorer(x[i : i + 1]) for i in range(5)])
    assert alone.max() - alone.min() > 0.1
    assert_close(scorer(x), alone)


def test_mixed_sizes_come_back_in_order(scorer):
    made = pictures([*NO_RESIZE, *RESIZED[:2], *NO_RESIZE])
    alone = torch.cat([scorer.score([picture]) for picture in made])
    assert_close(scorer.score(made, batch_size=3), alone)
    backwards = scorer.score(made[::-1], batch_size=3).flip(0)
    assert_close(backwards, alone)


def test_half_precision_pixels_are_computed_in_float32(scorer):
    x = unit(pictures([(256, 320)])[0])[None].half()
    assert_close(scorer(x), scorer(x.float()), 0)


def test_an_empty_batch(scorer):
    assert scorer(torch.zeros(0, 3, 64, 64)).shape == (0,)
    assert scorer.score_tasks(torch.zeros(0, 3, 64, 64)).shape == (0, 2)


def test_one_pixel_is_scored_and_a_strip_is_refused(scorer):
    assert scorer.score([Image.new("RGB", (1, 1), "red")]).isfinite().all()
    with pytest.raises(ValueError, match="over 200 times the other: 201x1 px"):
        scorer(torch.rand(1, 3, 1, 201))
    results = list(scorer.score_iter([Image.new("RGB", (1, 201)), Image.new("RGB", (9, 9))]))
    assert "over 200 times" in results[0].error and results[1].error is None


def test_neither_torchvision_nor_a_processor_is_needed(folder, monkeypatch):
    import transformers

    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", None)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", None)
    assert load(folder)(torch.rand(1, 3, 256, 256)).isfinite().all()


# --- gradients ----------------------------------------------------------------------------------


def gradient(score, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(score(x).sum(), x)[0]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("size", [(256, 320), (200, 310)])
def test_gradient_is_the_slope(scorer, size):
    x = torch.stack([unit(picture) for picture in pictures([size] * 2)]) * 0.8 + 0.1
    g = gradient(scorer, x)
    assert (g != 0).float().mean() > 0.9
    step = 1e-2 * g / g.norm()
    with torch.no_grad():
        slope = (scorer(x + step) - scorer(x - step)).double().sum() / (2 * step.norm())
    assert slope.item() == pytest.approx(g.norm().item(), rel=0.01)


def official_gradient(official, x):
    """Through the stock model's own forward, from pixels normalised and cut into patches here."""
    question, stem = CARD["quality"]
    rows, columns = x.shape[2] // 16, x.shape[3] // 16
    cut = ((x - 0.5) / 0.5).reshape(-1, 3, rows // 2, 2, 16, columns // 2, 2, 16)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :].expand(*[-1] * 6, 2, -1, -1)
    total = 0
    for patches in cut.reshape(len(x), rows * columns, -1):
        pixels = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}
        logits = official.logits(pixels, official.prompt(question) + stem)
        total = total + (logits.softmax(-1) * WEIGHTS).sum()
    return total


def test_gradient_is_the_stock_models(scorer, official):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 2)])
    ours, stock = gradient(scorer, x), gradient(lambda x: official_gradient(official, x), x)
    assert relative(ours, stock) < 1e-4


def test_gradient_after_scoring_without_one(folder):
    """What the first call keeps for later ones must serve autograd too."""
    scorer = load(folder)
    x = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        scorer(x), scorer.score_tasks(x)
    assert gradient(scorer, x).norm() > 0
    assert gradient(scorer.score_tasks, x).norm() > 0


def test_weights_are_frozen(scorer):
    x = torch.rand(1, 3, 256, 256, requires_grad=True)
    scorer(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in scorer.parameters())


def test_checkpointing_recomputes_and_changes_nothing(folder, scorer):
    slim = load(folder, gradient_checkpointing=True)
    assert slim.gradient_checkpointing and not slim.training and not scorer.gradient_checkpointing
    runs = {"text": 0, "vision": 0}

    def count(name):
        return lambda *_: runs.__setitem__(name, runs[name] + 1)

    slim.reader.language_model.layers[0].mlp.register_forward_pre_hook(count("text"))
    slim.reader.visual.blocks[0].mlp.register_forward_pre_hook(count("vision"))
    x = torch.rand(2, 3, 256, 256)
    slim(x)
    assert runs == {"text": 1, "vision": 1}
    assert relative(gradient(slim, x), gradient(scorer, x)) < EXACT
    assert runs == {"text": 3, "vision": 3}  # the second run's forward, and its recomputation
    assert card_id(slim) == card_id(scorer)


def card_id(scorer):
    return scorer.card.fingerprint_id


# --- several questions --------------------------------------------------------------------------


def test_score_tasks_equals_one_scorer_a_task(folder, scorer):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 3)])
    each = torch.stack([scorer(x), load(folder, "aesthetics")(x)], 1)
    assert scorer.forks and scorer.card.fingerprint["fork"] == "yes"
    assert (each[:, 0] - each[:, 1]).abs().max() > 0.01
    assert_close(scorer.score_tasks(x), each, 2e-5)
    assert_close(scorer.score_tasks(x, ("aesthetics",)), each[:, 1:], 2e-5)
    assert_close(scorer.score_tasks(x, ("aesthetics", "quality")), each.flip(1), 2e-5)


def test_the_gradient_of_score_tasks_is_that_of_full_passes(folder, scorer):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 2)])
    other = load(folder, "aesthetics")
    forked = gradient(lambda x: scorer.score_tasks(x) @ torch.tensor([1.0, 0.5]), x)
    full = gradient(lambda x: scorer(x) + 0.5 * other(x), x)
    assert relative(forked, full) < 1e-4


def test_the_picture_is_read_once(scorer):
    seen = []
    handle = scorer.reader.visual.register_forward_hook(lambda *_: seen.append(1))
    scorer.score_tasks(torch.rand(2, 3, 256, 256))
    handle.remove()
    assert seen == [1]


def test_a_kernel_that_drops_its_state_is_noticed(folder, scorer, monkeypatch, caplog):
    real = qwen_text.gated_delta_rule
    dropping = lambda q, k, v, g, beta, memory=None: real(q, k, v, g, beta)  # noqa: E731
    monkeypatch.setattr(qwen_text, "gated_delta_rule", dropping)
    with caplog.at_level(logging.WARNING):
        careful = load(folder)
    assert not careful.forks and careful.card.fingerprint["fork"] == "no"
    assert len(caplog.records) == 1 and "full pass" in caplog.text
    assert card_id(careful) != card_id(scorer)
    x = torch.rand(2, 3, 256, 256)
    assert_close(careful.score_tasks(x)[:, 0], scorer(x), 0)
    monkeypatch.undo()
    assert_close(careful.score_tasks(x), scorer.score_tasks(x), 2e-5)


def test_unknown_tasks_are_refused(scorer, folder):
    for tasks in (("video",), ("beauty",), ()):
        with pytest.raises(ValueError, match="tasks must be among"):
            scorer.score_tasks(torch.rand(1, 3, 64, 64), tasks)
    with pytest.raises(ValueError, match="task must be one of"):
        load(folder, "beauty")


# --- prompts ------------------------------------------------------------------------------------

USER = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
CARD_USER = USER.format("How would you rate the quality of this image?")
UPSTREAM_USER = USER.format("Can you rate the quality of this picture?")
ASSISTANT = "<|im_start|>assistant\n"
CLOSED = "<think>\n\n</think>\n\n"
STEM = "The quality of the image is"


@pytest.mark.parametrize("open_by_default", [True, False])
def test_prompt_styles(tmp_path, open_by_default):
    folder = write_checkpoint(tmp_path / "checkpoint", open_by_default=open_by_default)
    default = "<think>\n" if open_by_default else CLOSED
    rendered = {
        "card": CARD_USER + ASSISTANT + default + STEM,
        "closed_think": CARD_USER + ASSISTANT + CLOSED + STEM,
        "upstream": UPSTREAM_USER + ASSISTANT + CLOSED + " " + STEM,
    }
    official, picture = Official.load(folder), pictures([(256, 256)])[0]
    for style, text in rendered.items():
        scorer = load(folder, prompt_style=style)
        assert scorer.rendered_prompt == text
        stem = f" {STEM}" if style == "upstream" else ""
        with torch.no_grad():
            logits = official.logits(official.pixels([picture]), text.removesuffix(stem), stem)
        reference = (logits.softmax(-1) * WEIGHTS).sum()
        assert_close(scorer(unit(picture)[None]), reference[None])


def test_upstreams_stem_is_tokenised_apart(folder):
    """A space after the closed think block is its own token when the text is tokenised whole."""
    prompt = load(folder, prompt_style="upstream")._prompts["quality"]
    tokenizer = Official.load(folder).tokenizer
    stem = tokenizer(f" {STEM}", add_special_tokens=False).input_ids
    assert prompt.after[-len(stem) :] == tuple(stem)
    assert tokenizer.decode(stem[:1]).startswith(" ")


def test_styles_score_differently_and_say_so(folder, scorer):
    x = torch.rand(1, 3, 256, 256)
    scorers = [load(folder, prompt_style=style) for style in ("closed_think", "upstream")]
    assert len({round(s(x).item(), 4) for s in [scorer, *scorers]}) == 3
    assert len({card_id(s) for s in [scorer, *scorers]}) == 3


def test_a_legacy_template_file_comes_first(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    source = (copy / "chat_template.jinja").read_text().replace("assistant", "helper")
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    assert "<|im_start|>helper" in load(copy).rendered_prompt


def test_a_template_without_pictures_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|image_pad|>", ""))
    with pytest.raises(ValueError, match="renders 1 pictures as 0 placeholders"):
        load(copy)


def test_level_words_must_be_single_tokens(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    tokenizer = make_tokenizer(levels=[])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ValueError, match="level words must be one token each"):
        load(copy)


def test_level_words_must_have_tokens_of_their_own():
    class Unknowing:  # as a tokenizer that has none of the words
        def __call__(self, text, add_special_tokens):
            return SimpleNamespace(input_ids=[0])

    with pytest.raises(ValueError, match=r"all different, got 'excellent' \[0\], 'good' \[0\]"):
        level_ids(Unknowing())


# --- videos -------------------------------------------------------------------------------------


def official_video(official, frames):
    """Upstream's preparation: 8 uniform frames, the longer side at most 448, every one a picture."""
    chosen = [frames[round(float(i))] for i in np.linspace(0, len(frames) - 1, 8)]
    resized = []
    for frame in chosen:
        width, height = frame.size
        if max(width, height) > 448:
            scale = 448 / max(width, height)
            frame = frame.resize((max(1, int(width * scale)), max(1, int(height * scale))))
        resized.append(frame)
    return official.score(resized, "video")


@pytest.mark.parametrize(("count", "size"), [(8, (256, 256)), (20, (270, 480)), (3, (500, 300))])
def test_video_equals_the_stock_model_on_its_frames(scorer, official, count, size):
    frames = pictures([size] * count, seed=count)
    video = torch.stack([tensor(frame) for frame in frames])
    assert_close(scorer.score_video(video[None]), [official_video(official, frames)])


def test_videos_in_a_batch_score_as_alone(scorer):
    videos = torch.rand(2, 8, 3, 256, 256)
    alone = torch.cat([scorer.score_video(video[None]) for video in videos])
    assert_close(scorer.score_video(videos), alone)
    assert gradient(scorer.score_video, videos[:1, :2]).norm() > 0


def test_video_limits_are_switchable(folder, official):
    frames = pictures([(300, 480)] * 3)
    video = torch.stack([tensor(frame) for frame in frames])[None]
    scorer = load(folder, task="video", video_frames=None, video_max_side=None)
    assert_close(scorer.score_video(video), [official.score(frames, "video")])
    one = load(folder, task="video", video_frames=1, video_max_side=None)
    assert_close(one.score_video(video), [official.score(frames[:1], "video")])
    # A still is a video of one frame.
    assert_close(one.score(frames[:1]), one.score_video(video[:, :1]))
    assert len({card_id(s) for s in (scorer, one, load(folder, task="video"))}) == 3
    assert one.rendered_prompt.count("<|image_pad|>") == 1
    assert load(folder, task="video").rendered_prompt.count("<|image_pad|>") == 8


def test_bad_frames_are_refused(scorer):
    with pytest.raises(ValueError, match=r"frames must be \[B, T, 3, H, W\]"):
        scorer.score_video(torch.rand(8, 3, 64, 64))
    with pytest.raises(ValueError, match=r"got \[1, 0, 3, 64, 64\]"):
        scorer.score_video(torch.rand(1, 0, 3, 64, 64))
    with pytest.raises(TypeError, match="uint8 or floating point"):
        scorer.score_video(torch.zeros(1, 8, 3, 64, 64, dtype=torch.int64))


# --- precision ----------------------------------------------------------------------------------


def test_bfloat16_is_as_near_the_truth_as_the_stock_model(half_folder):
    made = pictures(NO_RESIZE + RESIZED)
    truth = load(half_folder).score(made)
    ours = load(half_folder, dtype=torch.bfloat16).score(made)
    official = Official.load(half_folder)
    stock = torch.tensor([official.score(picture) for picture in made])
    assert (ours - truth).abs().mean() <= 1.2 * (stock - truth).abs().mean()
    assert_close(ours, truth, 0.05)


def test_the_head_is_float32_in_any_dtype(half_folder):
    scorer = load(half_folder, dtype=torch.bfloat16)
    hidden = torch.randn(64, scorer.levels.shape[1]).bfloat16()
    exact = (hidden.double() @ scorer.levels.double().T).softmax(-1) @ WEIGHTS.double()
    scores = scorer._judged(hidden)
    assert scores.dtype == torch.float32
    assert_close(scores.double(), exact, 1e-6)


def test_casting_the_scorer_is_loading_it_so(half_folder):
    """Rotary angles stay float32: a blanket `.to(dtype)` has no buffers to corrupt."""
    x = torch.rand(2, 3, 256, 320)
    cast = load(half_folder)
    cast(x), cast.score_tasks(x)
    loaded = load(half_folder, dtype=torch.bfloat16)
    assert_close(cast.to(torch.bfloat16)(x), loaded(x), 0)
    assert not list(loaded.buffers())
    assert cast.card.fingerprint["dtype"] == "bfloat16"


def test_dtype_auto_is_float32_on_the_cpu(half_folder):
    assert {p.dtype for p in load(half_folder).parameters()} == {torch.float32}


# --- checkpoints --------------------------------------------------------------------------------


def test_only_the_rows_that_are_read_are_loaded(folder, scorer, official):
    words = official.model.get_input_embeddings().weight
    assert len(scorer.reader.embedding) < len(words) / 4
    stock = sum(p.numel() for p in official.model.parameters())
    assert scorer.card.parameters < stock - words.numel() / 2


def test_one_file_with_a_second_head_scores_the_same(folder, scorer, tmp_path):
    single = load(as_single_file(folder, tmp_path / "single"))
    x = torch.rand(1, 3, 256, 256)
    assert_close(single(x), scorer(x), 1e-6)


def test_an_untied_head_is_used(tmp_path):
    folder = write_checkpoint(tmp_path / "untied", tied=False)
    official = Official.load(folder)
    assert official.model.lm_head.weight is not official.model.get_input_embeddings().weight
    picture = pictures([(256, 256)])[0]
    assert_close(load(folder).score([picture]), [official.score(picture)])


def test_the_fingerprint_holds_what_changes_scores(folder, half_folder, scorer):
    assert card_id(load(folder)) == card_id(scorer)
    others = [load(half_folder), load(folder, max_pixels=10**6), load(folder, "aesthetics")]
    assert len({card_id(s) for s in [scorer, *others]}) == 4


def test_max_pixels(folder, scorer):
    assert scorer.input_size(1024, 1024) == (1024, 1024)
    small = load(folder, max_pixels=300_000)
    height, width = small.input_size(1024, 1024)
    assert height * width <= 300_000 and height % 32 == width % 32 == 0
    with pytest.raises(ValueError, match="at least the checkpoint's min_pixels 65536"):
        load(folder, max_pixels=1000)


def test_the_card(scorer):
    card = scorer.card
    assert card.range == (0.0, 1.0) and card.licence == "Apache-2.0"
    assert set(card.capabilities) == {"score_tasks", "score_video", "differentiable"}
    assert card.fingerprint["kernels"] == "torch" and card.fingerprint["head"] == "float32"
    assert "moderation" in card.out_of_scope and "relative" in card.limits


def test_options_are_checked(folder):
    with pytest.raises(TypeError, match="colour"):
        load(folder, colour=1)
    with pytest.raises(ValueError, match="prompt_style must be one of"):
        load(folder, prompt_style="poem")
    for name in ("max_pixels", "video_frames", "video_max_side"):
        for value in (0, 2.5):
            with pytest.raises(ValueError, match=f"{name} must be a whole number"):
                load(folder, **{name: value})


def test_an_old_transformers_is_named_with_the_command(folder, monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    with pytest.raises(ImportError, match=r'4\.57\.6: pip install "transformers>=5\.2"'):
        load(folder)


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


BROKEN = {
    "a shard is missing": (
        lambda f: next(f.glob("*00002*")).unlink(),
        "which its index names",
    ),
    "a shard is cut off": (
        lambda f: [p := next(f.glob("*00002*")), p.write_bytes(p.read_bytes()[:-100])],
        "damaged or half-written safetensors: .*00002",
    ),
    "a layer too many": (
        lambda f: edit_json(f / "config.json", lambda c: c["vision_config"].update(depth=3)),
        "does not fit: 12 missing: visual.blocks.2",
    ),
    "a layer too few": (
        lambda f: edit_json(f / "config.json", lambda c: c["vision_config"].update(depth=1)),
        "does not fit: 12 unknown: visual.blocks.1",
    ),
    "another shape": (
        lambda f: edit_json(
            f / "config.json", lambda c: c["vision_config"].update(intermediate_size=32)
        ),
        r"misshapen: visual.blocks.0.mlp.linear_fc1.weight \[64, 32\] instead of \[32, 32\]",
    ),
    "another kind of model": (
        lambda f: (f / "config.json").write_text('{"model_type": "siglip"}'),
        "is a siglip model, not Q-ReAlign",
    ),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.glob("tokenizer*")],
        "no tokenizer.json in",
    ),
    "no chat template": (
        lambda f: (f / "chat_template.jinja").unlink(),
        "no chat template in",
    ),
    "no preprocessor": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        "no preprocessor_config.json in",
    ),
    "a preprocessor without sizes": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c.pop("size")),
        "preprocessor_config.json lacks 'shortest_edge'",
    ),
    "a preprocessor that is not JSON": (
        lambda f: (f / "preprocessor_config.json").write_text("{"),
        "not JSON: .*preprocessor_config.json",
    ),
    "another patch size": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c.update(patch_size=14)),
        "config.json: patch_size is 16, expected 14",
    ),
    "another resampling": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c.update(resample=2)),
        "asks for resample 2; only 3 is supported",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_named(folder, tmp_path, fault):
    breaks, message = BROKEN[fault]
    copy = shutil.copytree(folder, tmp_path / "copy")
    breaks(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
