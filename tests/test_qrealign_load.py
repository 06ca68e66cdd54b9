"""Q-ReAlign's prompts and checkpoints: what they become, and what is refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from qrealign_tools import assert_close, card_id, load, pictures, unit
from tiny_qwen import WEIGHTS, Official, as_single_file, make_tokenizer, write_checkpoint

from tastemaker.scorers.qrealign_prompt import level_ids


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
    "a chat template that is no template": (
        lambda f: (f / "chat_template.jinja").write_text("{% for %}\n{{"),
        "chat_template.jinja: ",
    ),
    "a tokenizer that is cut off": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "not JSON: .*tokenizer.json",
    ),
    "a tokenizer of nothing": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json: ",
    ),
    "a tokenizer configuration that is cut off": (
        lambda f: (f / "tokenizer_config.json").write_text("{"),
        "not JSON: .*tokenizer_config.json",
    ),
    "no mean": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c.update(image_mean=None)),
        "preprocessor_config.json: image_mean must be three numbers, got None",
    ),
    "a deviation of 0": (
        lambda f: edit_json(
            f / "preprocessor_config.json", lambda c: c.update(image_std=[0.5, 0, 0.5])
        ),
        "preprocessor_config.json: image_std must be three numbers above 0",
    ),
    "sizes that are none": (
        lambda f: edit_json(f / "preprocessor_config.json", lambda c: c.update(size=7)),
        "preprocessor_config.json lacks 'shortest_edge'",
    ),
    "no vision_config": (
        lambda f: edit_json(f / "config.json", lambda c: c.pop("vision_config")),
        "config.json lacks 'vision_config'",
    ),
    "no heads": (
        lambda f: edit_json(f / "config.json", lambda c: c["vision_config"].update(num_heads=0)),
        "config.json: vision_config: num_heads must be a whole number from 1 up, got 0",
    ),
    "a hidden size in words": (
        lambda f: edit_json(f / "config.json", lambda c: c["text_config"].update(hidden_size="x")),
        "config.json: .*hidden_size",
    ),
    "a rope without sections": (
        lambda f: edit_json(
            f / "config.json",
            lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[]),
        ),
        "config.json: rope_parameters: mrope_section must be three whole numbers",
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
