"""What JoyQuality and RALI share: the tower, its precision, its compilation, the choice of attention."""

import pytest
import tiny_vit
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from tastemaker.scorers import attention as module
from tastemaker.scorers import load_scorer
from tastemaker.scorers.attention import attention, fastest_backend
from tastemaker.scorers.rali_convert import convert_rali
from tastemaker.scorers.vit import ACTIVATIONS, QUICK, VitConfig, patchify


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    joyquality, release = (tmp_path_factory.mktemp(n) for n in ("joyquality", "release"))
    tiny_vit.make_joyquality().save_pretrained(joyquality)
    tiny_vit.write_rali_release(release)
    return {"joyquality": joyquality, "rali": convert_rali(release, release / "converted")}


@pytest.fixture(params=["joyquality", "rali"])
def folder(request, folders):
    return folders[request.param]


def pixels(scorer, batch=2, dtype=torch.float32):
    size = scorer.input_size(1, 1)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, *size, generator=generator, dtype=dtype)


def test_float64_agrees_with_float32_and_with_its_own_gradient(folder):
    scorer = load_scorer(folder, dtype="float64")
    images = pixels(scorer, dtype=torch.float64) * 0.8 + 0.1
    with torch.no_grad():
        single = load_scorer(folder)(images.float())
    torch.testing.assert_close(scorer(images), single, atol=1e-5, rtol=0)

    def wide(x):  # the score before it is rounded to float32
        return scorer.head(scorer.features(x)).flatten()

    assert wide(images).dtype == torch.float64
    assert tiny_vit.directional_error(wide, images, 1e-4) < 1e-6


def test_checkpointing_gives_the_same_gradient_and_recomputes(folder):
    runs, gradients = [], []
    for checkpointed in (False, True):
        scorer = load_scorer(folder)
        scorer.gradient_checkpointing = checkpointed
        scorer.tower.blocks[-1].register_forward_pre_hook(lambda *_: runs.append(1))
        images = pixels(scorer).requires_grad_()
        gradients += torch.autograd.grad(scorer(images).sum(), images)
        assert len(runs) == (3 if checkpointed else 1)
    torch.testing.assert_close(*gradients)
    assert load_scorer(folder, gradient_checkpointing=True).gradient_checkpointing


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph_forward_and_backward(folder, backend):
    plain, compiled = load_scorer(folder), load_scorer(folder)
    compiled.compile(backend=backend)
    images = pixels(plain).requires_grad_()
    scores = compiled(images)
    torch.testing.assert_close(scores, plain(images), atol=1e-5, rtol=0)
    (ours,) = torch.autograd.grad(scores.sum(), images)
    (theirs,) = torch.autograd.grad(plain(images).sum(), images)
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-3)


def test_folded_quick_gelu_is_quick_gelu():
    x = torch.linspace(-9, 9, 999, dtype=torch.float64)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](QUICK * x) / QUICK, expected)


def test_patches_are_those_of_a_convolution_also_where_they_do_not_divide_the_picture():
    images, weight = torch.rand(2, 3, 38, 41), torch.rand(5, 3, 14, 14)
    expected = F.conv2d((images * 255 - 127.5) / 128, weight, stride=14).flatten(2).transpose(1, 2)
    ours = patchify(images, 14, torch.float32) @ weight.flatten(1).T
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_8_bit_pixels_are_exact_in_bfloat16():
    levels = torch.arange(256).float() / 255
    images = levels.reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    patches = patchify(images, 16, torch.bfloat16)
    assert torch.equal(patches[0, 0, :256].double(), (torch.arange(256).double() - 127.5) / 128)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"hidden_act": "swish2"}, "unknown activation 'swish2'"),
        ({"num_attention_heads": 5}, "5 heads do not divide 768"),
        ({"num_channels": 1}, "not a tower of RGB pictures: 1 channels"),
        ({"hidden_size": "many"}, "config.json: vision_config: hidden_size must be .*'many'"),
        ({"image_size": None}, "config.json: vision_config: image_size must be .* got None"),
        ({"num_attention_heads": 0}, "config.json: vision_config: num_attention_heads .* got 0"),
        ({"layer_norm_eps": "x"}, "config.json: vision_config: layer_norm_eps .* got 'x'"),
        ({"hidden_act": None}, "config.json: vision_config: hidden_act must be text, got None"),
        ({"patch_size": 512}, "512 px patches of a 224 px picture"),
        (None, "no vision_config"),
    ],
)
def test_a_configuration_of_something_else_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        VitConfig.read(values, "config.json")


# --- attention ------------------------------------------------------------------------------------


def test_attention_is_softmax_attention():
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    for scale in (None, 0.3):
        weights = (q @ k.transpose(-1, -2) * (8**-0.5 if scale is None else scale)).softmax(-1)
        torch.testing.assert_close(attention(q, k, v, scale), weights @ v)


class TestBackend:
    """The choice, with the clock replaced: the timing itself needs a GPU."""

    times = {
        SDPBackend.CUDNN_ATTENTION: 1.0,
        SDPBackend.FLASH_ATTENTION: 2.0,
        SDPBackend.EFFICIENT_ATTENTION: 3.0,
    }

    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch):
        self.timed = []

        def milliseconds(device, dtype, shape, grad, backend):
            self.timed.append(backend)
            if backend not in self.times:
                raise RuntimeError("No available kernel")
            return self.times[backend]

        monkeypatch.setattr(module, "_milliseconds", milliseconds)
        fastest_backend.cache_clear()
        yield
        fastest_backend.cache_clear()

    def choose(self, grad, batch=4):
        shape = (batch, 16, 1024, 1024, 72)
        return fastest_backend(torch.device("cuda", 0), torch.bfloat16, shape, grad)

    def test_the_fastest_is_chosen_once_per_shape(self):
        assert self.choose(grad=False) == SDPBackend.CUDNN_ATTENTION
        assert self.choose(grad=False) == SDPBackend.CUDNN_ATTENTION
        assert len(self.timed) == 3
        self.choose(grad=False, batch=8)
        assert len(self.timed) == 6

    def test_cudnn_has_no_part_in_gradients(self):
        assert self.choose(grad=True) == SDPBackend.FLASH_ATTENTION
        assert SDPBackend.CUDNN_ATTENTION not in self.timed

    def test_backends_that_cannot_are_passed_over(self, monkeypatch):
        monkeypatch.setattr(self, "times", {SDPBackend.EFFICIENT_ATTENTION: 3.0})
        assert self.choose(grad=False) == SDPBackend.EFFICIENT_ATTENTION
        monkeypatch.setattr(self, "times", {})
        assert self.choose(grad=True) == SDPBackend.MATH

    def test_want_of_memory_is_no_answer(self, monkeypatch):
        """The batch is halved by who called; what is chosen then is measured, not remembered."""
        whole = module._milliseconds

        def full(*_):
            raise torch.cuda.OutOfMemoryError("out of memory")

        monkeypatch.setattr(module, "_milliseconds", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            self.choose(grad=False)
        monkeypatch.setattr(module, "_milliseconds", whole)
        assert self.choose(grad=False) == SDPBackend.CUDNN_ATTENTION
