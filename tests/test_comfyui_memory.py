"""Scorers and ComfyUI's memory manager, inside a process that has ComfyUI and no server."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from comfyui_server import ROOT, STANDIN
from comfyui_source import comfyui_path

pytestmark = pytest.mark.comfyui

# The pack as ComfyUI's loader imports it: under its path, which is no importable name.
PRELUDE = """
import sys, json, gc
sys.argv = ["main.py", "--cpu", "--base-directory", {base!r}]
sys.path.insert(0, {comfyui!r})
import comfy.options
comfy.options.enable_args_parsing()
import torch
import comfy.model_management as mm
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location({pack!r}, {pack!r} + "/__init__.py")
sys.modules[{pack!r}] = pack = module_from_spec(spec)
spec.loader.exec_module(pack)
from importlib import import_module
managed = import_module({pack!r} + ".nodes.managed")

def nano(**options):
    return managed.managed("nano", (), **{{"task": "quality", "dtype": "auto", **options}})

def on_device():
    return [type(loaded.model.model).__name__ for loaded in mm.current_loaded_models]

images = torch.rand(3, 40, 56, 3, generator=torch.Generator().manual_seed(0))
inference = torch.inference_mode()
inference.__enter__()  # as every node runs
"""


# One process for all tests, since it takes seconds to import ComfyUI; each finds it empty.
WORKER = """
import contextlib, traceback
for line in sys.stdin:
    own = dict(globals())
    try:
        exec(json.loads(line), own)
        answer = {"result": own["result"]}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    own.clear()
    mm.interrupt_current_processing(False)
    mm.unload_all_models()
    gc.collect()
    print("ANSWER", json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def process(comfyui_release, tmp_path_factory):
    base = tmp_path_factory.mktemp("memory")
    places = dict(base=str(base), comfyui=str(comfyui_path(comfyui_release)), pack=str(ROOT))
    path = os.pathsep.join([str(STANDIN), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE.format(**places) + WORKER],
        env={**os.environ, "PYTHONPATH": path, "TASTEMAKER_HOME": str(base / "home")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def inside(process):
    """Runs code after the prelude; what it calls `result` comes back."""

    def run(code: str):
        print(json.dumps(textwrap.dedent(code)), file=process.stdin, flush=True)
        for line in process.stdout:
            if line.startswith("ANSWER"):
                answer = json.loads(line.removeprefix("ANSWER"))
                assert "error" not in answer, answer["error"]
                return answer["result"]
        raise RuntimeError("the process died")

    return run


def test_the_same_scorer_asked_for_twice_is_one_model(inside):
    result = inside("""
        first, second = nano(), nano()
        first.score([images]), second.score([images])
        half = nano(dtype="float16")
        half.score([images])
        result = [first.weights[0] is second.weights[0], first.weights[0] is half.weights[0],
                  on_device(), [str(half.scorer.dtype), str(first.scorer.dtype)]]
    """)
    assert result == [True, False, ["nano", "nano"], ["torch.float16", "torch.float32"]]


def test_a_scorer_stays_as_long_as_comfyui_keeps_it_and_no_longer(inside):
    """Between two graphs nobody refers to it; dropping the models gives its memory back."""
    result = inside("""
        import weakref
        nano().score([images])
        gc.collect()
        again = nano()
        kept = [len(managed._on_device), next(iter(managed._on_device)) is again.weights[0]]
        gone = weakref.ref(again.weights[0])
        del again
        mm.unload_all_models()
        gc.collect()
        result = [kept, len(managed._on_device), gone() is None, on_device()]
    """)
    assert result == [[1, True], 0, True, []]


def test_an_evicted_scorer_comes_back_and_scores_the_same(inside):
    result = inside("""
        scorer = nano()
        first = scorer.score([images]).values.tolist()
        mm.unload_all_models()
        between = on_device()
        second = scorer.score([images]).values.tolist()
        result = [first == second, between, on_device()]
    """)
    assert result == [True, [], ["nano"]]


def test_the_memory_manager_is_told_what_a_pass_takes(inside):
    result = inside("""
        asked = []
        own = mm.load_models_gpu
        def spy(models, memory_required=0, **options):
            asked.append(memory_required)
            return own(models, memory_required=memory_required, **options)
        mm.load_models_gpu = spy
        scorer = nano()
        scorer.score([images])
        scorer.score([torch.rand(3, 400, 560, 3)])
        scorer.score([images, torch.rand(1, 400, 560, 3)])
        mm.load_models_gpu = own
        result = asked
    """)
    small, large, mixed = result
    assert small > 3 * 40 * 56 * 3
    assert large > 50 * small
    assert mixed > large  # the largest size of the list, for a whole batch


def test_the_batch_shrinks_to_what_the_device_holds(inside):
    result = inside("""
        scorer = nano()
        whole, need = scorer.plan(16, 512, 512)
        total = mm.get_total_memory
        mm.get_total_memory = lambda *a, **k: need / 3
        part, less = scorer.plan(16, 512, 512)
        mm.get_total_memory = lambda *a, **k: 1
        result = [whole, part, less < need / 3, scorer.plan(16, 512, 512)[0]]
        mm.get_total_memory = total
    """)
    assert result == [16, 4, True, 1]


def test_weights_moved_under_inference_mode_still_give_a_gradient(inside):
    result = inside("""
        scorer = nano()
        scorer.load()
        module = scorer.weights[0].patcher.model
        module.to(torch.float64).to(torch.float32)  # stands for a move to another device
        moved = all(w.is_inference() for w in module.parameters())
        with torch.inference_mode(False), torch.enable_grad():
            pixels = torch.rand(1, 3, 64, 64).requires_grad_()
            try:
                scorer.scorer(pixels).sum().backward()
                before = "no error"
            except RuntimeError as error:
                before = str(error)
            scorer.load()
            pixels = torch.rand(1, 3, 64, 64).requires_grad_()
            scorer.scorer(pixels).sum().backward()
        result = [moved, before, float(pixels.grad.abs().sum()),
                  any(w.is_inference() or w.requires_grad for w in module.parameters())]
    """)
    moved, before, gradient, left = result
    assert moved and "nference tensors" in before  # without `load` there is none: the test can fail
    assert gradient > 0 and not left


def test_an_interrupt_stops_within_one_batch(inside):
    result = inside("""
        import comfy.utils
        scorer, seen = nano(), []
        own = scorer.scorer.score_runs
        def spy(runs):
            runs = list(runs)
            seen.append(sum(len(run) for run in runs))
            if len(seen) == 2:
                mm.interrupt_current_processing()
            return own(runs)
        scorer.scorer.score_runs = spy
        scorer.scorer.default_batch_size = 4
        shown = []
        comfy.utils.set_progress_bar_global_hook(
            lambda value, total, *rest, **named: shown.append([value, total]))
        try:
            scorer.score([torch.rand(200, 32, 32, 3)])
            stopped = "finished"
        except mm.InterruptProcessingException:
            stopped = "interrupted"
        comfy.utils.set_progress_bar_global_hook(None)
        result = [stopped, seen, shown]
    """)
    stopped, seen, shown = result
    assert (stopped, seen) == ("interrupted", [4, 4])
    assert shown[0] == [4, 200]


def test_other_models_stay_where_they_are(inside):
    """Scoring asks for memory; it never unloads by force."""
    result = inside("""
        import comfy.model_patcher
        other = comfy.model_patcher.CoreModelPatcher(
            torch.nn.Linear(4, 4), load_device=mm.get_torch_device(), offload_device=torch.device("cpu"))
        mm.load_models_gpu([other])
        nano().score([images])
        result = sorted(on_device())
    """)
    assert result == ["Linear", "nano"]


def test_an_ensemble_shares_its_members_weights(inside):
    result = inside("""
        ensemble = import_module(pack.__name__ + ".nodes.ensemble")
        from importlib import import_module as _
        ranking = import_module(pack.__name__ + ".ranking")
        a, b = nano(), nano(dtype="float64")
        statistics = [ranking.ReferenceStatistics(0.0, 1.0, 9), ranking.ReferenceStatistics(1.0, 2.0, 9)]
        both = ensemble.ensemble([a, b], statistics, "nine images")
        mixed = both.score([images]).values
        apart = (a.score([images]).values + (b.score([images]).values - 1) / 2) / 2
        result = [float((mixed - apart).abs().max()), on_device(), len(both.weights)]
    """)
    assert result[0] < 1e-6
    assert result[1:] == [["nano", "nano"], 2]


def test_on_a_device_that_is_nearly_full_no_weight_stays_behind(inside):
    """ComfyUI leaves modules that are not its own on the CPU when they do not fit, and says nothing.

    The "meta" device stands for a GPU with room for a tenth of the scorer.
    """
    result = inside("""
        from unittest.mock import patch
        def free(device, torch_free_too=False):
            return (100_000, 100_000) if torch_free_too else 100_000
        fakes = dict(get_torch_device=lambda: torch.device("meta"), get_free_memory=free,
                     minimum_inference_memory=lambda: 0, vram_state=mm.VRAMState.NORMAL_VRAM)
        with patch.multiple(mm, **fakes):
            scorer = nano()
            scorer.load(1000)
            weights = scorer.weights[0].patcher.model.parameters()
            result = sorted({weight.device.type for weight in weights})
            mm.current_loaded_models.clear()
    """)
    assert result == ["meta"]


GUIDED = """
from unittest.mock import patch
import comfy.sample, comfy.sampler_helpers
guided = import_module(pack.__name__ + ".nodes.guided")
place = spec_from_file_location("probe", {probe!r})
probe = module_from_spec(place)
place.loader.exec_module(probe)

def guide(vae=None):
    model, cond = probe.ProbeModel().make("eps")
    return guided.Guided(nano(), vae, None, scale=0.2, window=(0.5, 1.0)).patch(model), cond

def sample(model, cond):
    zeros = torch.zeros(1, 4, 8, 8)
    noise = torch.randn(zeros.shape, generator=torch.Generator().manual_seed(0))
    return comfy.sample.sample(model, noise, 3, 2.0, "euler", "normal", cond, cond, zeros, seed=0)
""".format(probe=str(ROOT / "tests" / "comfyui_probe" / "__init__.py"))


def test_a_guided_run_loads_everything_at_once_and_nothing_while_it_samples(inside):
    """So nothing that it needs can drive out anything else that it needs."""
    result = inside(
        GUIDED
        + """
model, cond = guide(probe.ProbeVAE().make()[0])
asked, own = [], mm.load_models_gpu
def spy(models, *rest, **options):
    asked.append(sorted(type(one.model).__name__ for one in models))
    return own(models, *rest, **options)
with patch.object(mm, "load_models_gpu", spy):
    sample(model, cond)
record = model.get_attachment(guided.KEY).runs._last[0][1]
result = [asked, [row.reward is not None for row in record.rows]]
"""
    )
    assert result == [[["BaseModel", "TAESD", "nano"]], [True, True, False]]
