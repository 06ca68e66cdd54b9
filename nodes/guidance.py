"""Reward Guidance: a MODEL that is sampled towards a higher score. Guidance Report: what steering did."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..guidance.record import Record, summary
from .guided import KEY, Guided, decoder
from .images import from_pil
from .managed import ManagedScorer
from .particles import Particles
from .sampling import PROMPT
from .sockets import CATEGORY, SCORER
from .steering import told


class RewardGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerRewardGuidance",
            display_name="Reward Guidance",
            category=CATEGORY,
            description="While it samples, pushes the image towards what a scorer likes, early on, "
            "where that changes what the image shows.",
            search_aliases=[
                "steer",
                "gradient",
                "classifier guidance",
                "reward",
                "aesthetic boost",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that samples. It is not changed."),
                SCORER.Input("scorer", tooltip="Who guides, from Load Scorer or an ensemble."),
                io.Float.Input(
                    "strength",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How far the predicted image is pushed at a step that is all noise, in "
                    "standard deviations of the latents; less where there is less noise, and never "
                    "more than 0.25. 0.05 to 0.2 is useful. 0: off, the image of the plain model.",
                ),
                io.Float.Input(
                    "window_start",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise ratio from which guidance begins: 1 is pure noise, the start.",
                ),
                io.Float.Input(
                    "window_end",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise ratio at which guidance ends: 0 is the finished image. Late pushes "
                    "change pixels to please the scorer. The same as window_start: off.",
                ),
                io.Boolean.Input(
                    "stop_on_gap",
                    default=False,
                    tooltip="Stop as soon as the pushes raise the scorer's score and lower that of "
                    "the held-out scorer. Off, or without a held-out scorer: go on.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the image for the scorer: a TAESD (Load VAE lists it), or the "
                    "model's VAE, which takes about 20 times as long and much memory. None: a coarse "
                    "preview of one pixel a latent, good for colours and composition only.",
                ),
                SCORER.Input(
                    "held_out",
                    optional=True,
                    tooltip="Another scorer, which does not guide, but says whether the image gets "
                    "better or only the score. None: no such check.",
                ),
                PROMPT,
            ],
            outputs=[io.Model.Output(tooltip="For any sampler; and for Guidance Report.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        scorer: ManagedScorer,
        strength: float,
        window_start: float,
        window_end: float,
        stop_on_gap: bool,
        vae: Any = None,
        held_out: ManagedScorer | None = None,
        prompt: str = "",
    ) -> io.NodeOutput:
        if window_end > window_start:
            raise ValueError(
                f"window_end ({window_end}) must not be above window_start ({window_start}): "
                "sampling goes from 1, noise, to 0"
            )
        if strength == 0 or window_start == window_end:
            return io.NodeOutput(model)
        decoder(model.get_model_object("latent_format"), vae)  # or says now what is missing
        window = (window_end, window_start)
        options = dict(scale=strength, window=window, stop_on_gap=stop_on_gap)
        return io.NodeOutput(Guided(scorer, vae, held_out, prompt, **options).patch(model))


class GuidanceReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerGuidanceReport",
            display_name="Guidance Report",
            category=CATEGORY,
            description="Shows what Reward Guidance or Particle Sampler did while these latents were "
            "sampled: the scores of the forming image, step by step.",
            search_aliases=["reward plot", "guidance curve", "reward hacking", "particles"],
            is_output_node=True,
            inputs=[
                io.Latent.Input("latent", tooltip="What the sampling node made with it."),
                io.Model.Input(
                    "model", optional=True, tooltip="The MODEL of Reward Guidance, to report on it."
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="The SAMPLER of Particle Sampler, to report on it instead.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plot",
                    tooltip="The mean scores against the steps; of particles, also what is left of "
                    "them. Where nothing was guided, what follows is skipped.",
                ),
                io.String.Output(display_name="summary", tooltip="The same in a sentence or two."),
            ],
        )

    @classmethod
    def validate_inputs(cls, latent, model=False, sampler=False) -> bool | str:
        # What is connected comes as None, what is not does not come. `latent` is named in the error.
        return True if (model is False) != (sampler is False) else ONE_OF

    @classmethod
    def execute(
        cls, latent: dict[str, Any], model: Any = None, sampler: Any = None
    ) -> io.NodeOutput:
        found = guided_record(model, latent) if model else steered_record(sampler, latent)
        record, said = found
        if all(row.reward is None for row in record.rows):
            return io.NodeOutput(ExecutionBlocker(None), said, ui=ui.PreviewText(said))
        plot = from_pil(record.plot("score of the forming image"))
        shown = ui.PreviewImage(plot, cls=cls).as_dict()
        return io.NodeOutput(plot, said, ui={**shown, "text": (said,)})


ONE_OF = "connect model (of Reward Guidance) or sampler (of Particle Sampler), one of the two"


def guided_record(model: Any, latent: dict[str, Any]) -> tuple[Record, str]:
    """What the run did that made the latents; nothing where the MODEL is not guided.

    ValueError if the latents are of another run.
    """
    guided: Guided | None = model.get_attachment(KEY)
    if guided is None:
        return Record(), summary(Record())
    record = guided.runs.record_of(latent["samples"])
    if record is None:
        raise ValueError(
            "latent was not sampled with this MODEL, or too long ago: connect the MODEL of Reward "
            "Guidance, and the LATENT output of the sampler that it is connected to"
        )
    return record, summary(record)


def steered_record(sampler: Any, latent: dict[str, Any]) -> tuple[Record, str]:
    """The same of particles."""
    if not isinstance(sampler, Particles):
        return Record(), told(Record())
    record = sampler.runs.record_of(latent["samples"])
    if record is None:
        raise ValueError(
            "latent was not sampled with this SAMPLER, or too long ago: connect the SAMPLER of "
            "Particle Sampler, and the output of the node that it is connected to"
        )
    return record, told(record)
