"""Score Video: one score of a video's frames."""

from __future__ import annotations

from comfy_api.latest import Input, io, ui
from PIL import Image
from torch import Tensor

from ..report.contact_sheet import format_score
from ..report.panels import filmstrip
from ..scorers.video import uniform_indices
from .images import from_pil, to_pil
from .managed import ManagedScorer
from .sockets import CATEGORY, SCORER, SCORES, Scores

ONE = "connect either images (a video's frames) or a video"


class ScoreVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerScoreVideo",
            display_name="Score Video",
            category=CATEGORY,
            description="Scores a video by a few frames. Q-ReAlign sees them together; other "
            "scorers judge each frame, and the mean is the video's score.",
            search_aliases=["video quality", "vqa", "rate video", "score frames"],
            is_output_node=True,
            inputs=[
                SCORER.Input("scorer", tooltip="Who judges, from Load Scorer or an ensemble."),
                io.Image.Input(
                    "images", optional=True, tooltip="The frames, as one batch; or connect a video."
                ),
                io.Video.Input(
                    "video", optional=True, tooltip="A video; or connect its frames as images."
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=0,
                    max=10_000,
                    tooltip="How many frames are judged, spread evenly, first and last among them. "
                    "0: all of them, which takes as much longer, and memory with Q-ReAlign.",
                ),
            ],
            outputs=[
                SCORES.Output(display_name="scores", tooltip="The video's, for other nodes."),
                io.Float.Output(
                    display_name="score", tooltip="The video's; NaN where it could not be scored."
                ),
                io.Float.Output(
                    display_name="frame_scores",
                    is_output_list=True,
                    tooltip="A number a judged frame, where each is judged alone; else the video's.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, scorer, images=False, video=False) -> bool | str:
        # What is connected comes as None, what is not does not come. `scorer` is named in the error.
        return True if (images is False) != (video is False) else ONE

    @classmethod
    def execute(
        cls,
        scorer: ManagedScorer,
        frames: int,
        images: Tensor | None = None,
        video: Input.Video | None = None,
    ) -> io.NodeOutput:
        given = images if video is None else video.get_components().images
        if not len(given):
            raise ValueError("the video has no frames")
        indices = uniform_indices(len(given), frames or None)
        scores, each = judge(scorer, given, indices)
        shown = preview_of(given, indices, scores, each)
        score = scores.values.item()
        listed = [score] if each is None else each
        return io.NodeOutput(scores, score, listed, ui=ui.PreviewImage(from_pil(shown), cls=cls))


def judge(
    scorer: ManagedScorer, frames: Tensor, indices: list[int]
) -> tuple[Scores, list[float] | None]:
    """The score of the chosen frames [T, H, W, C], and each one's own where it is judged alone."""
    if scorer.scorer.judges_frames_alone:
        different = sorted(set(indices))  # those of a short video repeat
        known = scorer.score([frames[different]])
        each = known.values[[different.index(i) for i in indices]]
        return Scores(each.mean()[None], known.card), each.tolist()
    sequence = scorer.scorer.with_video_frames(len(indices))
    if "video" in sequence.card.tasks:
        sequence = sequence.with_task("video")  # so that its card says what was asked
    return ManagedScorer(sequence, scorer.weights).score_video(frames[indices]), None


def preview_of(
    frames: Tensor, indices: list[int], scores: Scores, each: list[float] | None
) -> Image.Image:
    """The judged frames in order, and the video's score."""
    first = {index: place for place, index in reversed([*enumerate(indices)])}
    order = sorted(first)
    captions = [
        f"frame {i}" if each is None else f"frame {i}: {format_score(each[first[i]])}"
        for i in order
    ]
    count = f"{len(indices)} frame{'s' * (len(indices) > 1)}"
    how = f"{count} seen together" if each is None else f"mean of {count}"
    score = format_score(scores.values.item())
    title = f"{scores.card.name} ({scores.card.task}): {score}, {how}"
    return filmstrip([to_pil(frames[i]) for i in order], captions, title)
