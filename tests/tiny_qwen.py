"""A tiny random Qwen3.5-VL of the real class, saved in the exact format of the official checkpoints.

Shared by the Q-ReAlign tests. Whatever differs between transformers 5.2 and the newest is here.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

LEVELS = ["excellent", "good", "fair", "poor", "bad"]
WEIGHTS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
CARD = {
    "quality": (
        "How would you rate the quality of this image?",
        "The quality of the image is",
    ),
    "aesthetics": (
        "How would you rate the aesthetics of this image?",
        "The aesthetics of the image is",
    ),
    "video": ("How would you rate the quality of this video?", "The quality of the video is"),
}
OTHER = "Can you rate the quality of this picture? How is the aesthetics video user assistant\n\n"
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
]
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
SPREAD = 6.0


def template(open_by_default: bool) -> str:
    """A chat template that behaves as Qwen3.5's do: small sizes close the think block, large open it."""
    closed = (
        "enable_thinking is defined and enable_thinking is false"
        if open_by_default
        else "not (enable_thinking is defined and enable_thinking is true)"
    )
    return (
        "{%- for message in messages %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' }}\n"
        "    {%- for item in message.content %}\n"
        "        {%- if item.type == 'image' %}\n"
        "            {{- '<|vision_start|><|image_pad|><|vision_end|>' }}\n"
        "        {%- else %}\n"
        "            {{- item.text }}\n"
        "        {%- endif %}\n"
        "    {%- endfor %}\n"
        "    {{- '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|im_start|>assistant\\n' }}\n"
        f"    {{%- if {closed} %}}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
        "    {%- else %}\n"
        "        {{- '<think>\\n' }}\n"
        "    {%- endif %}\n"
        "{%- endif %}\n"
    )


def make_tokenizer(levels: list[str] = LEVELS):
    """A byte-pair tokenizer of Qwen's kind, in whose vocabulary each level word is one token."""
    from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX, Qwen3_5Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    texts = [OTHER, *(text for pair in CARD.values() for text in pair)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(20 * texts + 20 * [" " + " ".join(levels)], trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen3_5Tokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]]
    )
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.pad_token = SPECIAL[0]
    return tokenizer


VISION = dict(
    depth=2,
    hidden_size=32,
    intermediate_size=64,
    num_heads=4,
    patch_size=16,
    out_hidden_size=64,
    num_position_embeddings=64,
    initializer_range=0.3,
)


def text_sizes(vocab_size: int, layers: int, tied: bool) -> dict:
    return dict(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=dict(
            rope_type="default",
            rope_theta=10000.0,
            mrope_section=[2, 1, 1],
            mrope_interleaved=True,
            partial_rotary_factor=0.25,
        ),
        initializer_range=0.12,
        tie_word_embeddings=tied,
        # Every fourth in the published sizes; every other, so that a tiny model has two of each.
        layer_types=["linear_attention", "full_attention"] * (layers // 2),
    )


def make_config(
    tokenizer,
    layers: int = 4,
    tied: bool = True,
    text: dict | None = None,
    vision: dict | None = None,
):
    """Qwen3_5Config: tiny, or of the sizes given."""
    from transformers import Qwen3_5Config

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(name)

    config = Qwen3_5Config(
        text_config=text_sizes(len(tokenizer) + 7, layers, tied)
        | ({"layer_types": None, **text} if text else {}),
        vision_config={**VISION, **(vision or {})},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    quarter = config.text_config.head_dim // 8  # a quarter of each head's channels is rotated
    third = quarter // 3
    config.text_config.rope_parameters["mrope_section"] = [quarter - 2 * third, third, third]
    return config


def make_model(
    tokenizer,
    layers: int = 4,
    tied: bool = True,
    text: dict | None = None,
    vision: dict | None = None,
    device: torch.device | str = "cpu",
):
    """Qwen3_5ForConditionalGeneration with random weights that make scores differ between pictures."""
    from transformers import Qwen3_5ForConditionalGeneration

    config = make_config(tokenizer, layers, tied, text, vision)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3_5ForConditionalGeneration(config).eval()
    with torch.no_grad():  # training leaves no parameter at one or zero
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "A_log" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if (
                "dt_bias" in name
            ):  # the initial one forgets within a few tokens, unlike a trained one
                parameter.uniform_(-6, -2)
    return model


@torch.no_grad()
def spread_scores(model, tokenizer) -> None:
    """Makes pictures' scores differ by tenths: a random model's hardly differ.

    From the head's level rows, takes what they find in every picture alike, and scales up the rest.
    """
    official, common = Official(model, tokenizer), []
    generator = np.random.default_rng(7)
    noise = generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pixels = official.pixels([Image.fromarray(noise)])
    for (question, stem), thinks in itertools.product(CARD.values(), (True, False)):
        text = official.prompt(question, enable_thinking=thinks) + stem
        inputs = official.inputs(pixels, text)
        common.append(model.model(**inputs).last_hidden_state[0, -1])
    basis = torch.linalg.qr(torch.stack(common, 1)).Q  # [D, 6]
    rows = model.lm_head.weight[official.levels]
    model.lm_head.weight[official.levels] = SPREAD * (rows - rows @ basis @ basis.T)


def write_checkpoint(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    open_by_default: bool = True,
    layers: int = 4,
    tied: bool = True,
    **sizes,
) -> Path:
    """A folder as on the hub: config, sharded safetensors, tokenizer, template, preprocessor."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template(open_by_default)
    model = make_model(tokenizer, layers, tied, **sizes)
    spread_scores(model, tokenizer)
    model.config.dtype = dtype
    model.to(dtype).save_pretrained(folder, max_shard_size="2GB" if sizes else "200KB")
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")
    return folder


def as_single_file(folder: Path, to: Path) -> Path:
    """The same checkpoint as trainers save it: one file, the tied head twice, unused `mtp.*` keys."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors*"))
    state = {}
    for shard in folder.glob("*.safetensors"):
        state |= load_file(shard)
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
    state["mtp.fc.weight"] = torch.zeros(4, 4)
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    return to


class Official:
    """The model card's recipe, literally, but for the processor, which needs torchvision to exist.

    Pixels go through transformers' own Pillow image processor; with `resizer="torchvision"`, through
    torchvision's arithmetic on 8-bit tensors instead, which is `F.interpolate` on uint8.
    """

    def __init__(self, model, tokenizer, resizer: str = "pillow"):
        self.model, self.tokenizer = model, tokenizer
        self.processor, self.resizer = image_processor(), resizer
        ids = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in LEVELS]
        self.levels = [i[0] for i in ids]

    @classmethod
    def load(cls, folder: Path, dtype: str | torch.dtype = "auto", **how) -> Official:
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        return cls(model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder), **how)

    def prompt(self, question: str, pictures: int = 1, **template) -> str:
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            **template,
        )

    def pixels(self, pictures: list[Image.Image]) -> dict[str, Tensor]:
        if self.resizer == "torchvision":
            pictures = [torchvision_resized(picture) for picture in pictures]
        return dict(self.processor(images=pictures, return_tensors="pt"))

    def inputs(self, pixels: dict[str, Tensor], text: str, appended: str = "") -> dict[str, Tensor]:
        """What the processor makes of a text; `appended` is tokenised apart, as upstream does."""
        pad = "<|image_pad|>"
        for grid in pixels["image_grid_thw"]:
            text = text.replace(pad, "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        ids = self.tokenizer(text.replace("<|placeholder|>", pad)).input_ids
        ids += self.tokenizer(appended, add_special_tokens=False).input_ids if appended else []
        ids = torch.tensor([ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:  # since 5.3
            inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return inputs

    def logits(self, pixels: dict[str, Tensor], text: str, appended: str = "") -> Tensor:
        """The five levels' logits for the next word."""
        return self.model(**self.inputs(pixels, text, appended)).logits[0, -1, self.levels]

    def score(self, picture: Image.Image | list[Image.Image], task: str = "quality") -> float:
        question, stem = CARD[task]
        pictures = picture if isinstance(picture, list) else [picture]
        text = self.prompt(question, len(pictures)) + stem
        with torch.no_grad():
            probs = self.logits(self.pixels(pictures), text).softmax(-1)
        return (probs * WEIGHTS).sum().item()


def pillow_processing():
    """The module of transformers' own processor that resizes with Pillow; it has moved since 5.3."""
    from transformers.models import qwen2_vl

    for name in ("image_processing_pil_qwen2_vl", "image_processing_qwen2_vl"):
        try:
            return importlib.import_module(f"{qwen2_vl.__name__}.{name}")
        except ModuleNotFoundError:
            continue
    raise ImportError("transformers has no image processor for Qwen2-VL without torchvision")


def image_processor():
    module = pillow_processing()
    kind = getattr(module, "Qwen2VLImageProcessorPil", None) or module.Qwen2VLImageProcessor
    return kind(**{k: v for k, v in PREPROCESSOR.items() if not k.endswith(("_class", "_type"))})


def torchvision_resized(picture: Image.Image) -> Image.Image:
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    size = pillow_processing().smart_resize(*pixels.shape[2:], 32, 65536, 16777216)
    pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
