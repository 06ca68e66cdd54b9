"""Several scorers as one: the weighted mean of their standardised scores.

Scales differ - one scorer says 0 to 1, another any number - so each score is first expressed in
deviations from that scorer's mean, both measured on a named set of images (`tastemaker calibrate`).
Unlike the scores of a batch standardised by itself, an image's score does not depend on its company.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..ranking import ReferenceStatistics, standardize
from .base import Scorer, ScorerCard, check_images, differences
from .values import COUNT, NUMBER, OBJECT, POSITIVE, TEXT, WEIGHT, Kind, read_json, value

# What a file of `tastemaker calibrate` holds of each scorer.
ENTRY = {"load": OBJECT, "fingerprint": OBJECT, "mean": NUMBER, "std": POSITIVE, "n": COUNT}
ENTRIES = Kind("a list of objects", lambda x: isinstance(x, list) and all(map(OBJECT.holds, x)))


class Ensemble(Scorer):
    """sum of weight * (score - mean) / std over the members, the weights adding up to 1.

    Args:
        members: scorers, on one device when they are used.
        statistics: mean and deviation of each member's scores on the reference set.
        weights: one a member, not negative and not all 0; equal by default.
        reference: the name of the set that the statistics were measured on.
    """

    def __init__(
        self,
        members: Sequence[Scorer],
        statistics: Sequence[ReferenceStatistics],
        weights: Sequence[float] | None = None,
        reference: str = "unnamed",
    ):
        super().__init__()
        if not members or len(statistics) != len(members):
            counts = f"{len(members)} members and {len(statistics)} statistics"
            raise ValueError(
                f"an ensemble has one or more members with statistics each, got {counts}"
            )
        for member, statistic in zip(members, statistics, strict=True):
            if not (math.isfinite(statistic.mean) and 0 < statistic.std < math.inf):
                found = f"mean {statistic.mean}, deviation {statistic.std}"
                raise ValueError(f"{member.card.name} has no scale on {reference}: {found}")
        self.members = nn.ModuleList(members)
        self.statistics = tuple(statistics)
        self.weights = _shares(weights, len(members))
        self.reference = reference
        self.default_batch_size = min(member.default_batch_size for member in members)
        self.freeze()

    @classmethod
    def from_reference(
        cls,
        path: str | Path,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        *,
        load: Callable[..., Scorer] | None = None,
        **how: Any,
    ) -> Ensemble:
        """Loads the scorers that a file of `tastemaker calibrate` names, with its statistics.

        Args:
            weights: one a member, or by the members' names; by default those in the file, which
                are 1 unless it was edited.
            load: what to load a scorer with; by default `load_scorer`.
            how: `device`, `dtype` and what else `load` takes beside what the file says.

        Raises:
            ValueError: it is no such file; or a scorer does not score as it did when it was measured.
        """
        if load is None:
            from .load import load_scorer as load

        reference = read_reference(path)
        measured = reference["members"]
        _check_nesting(Path(path))
        members = [load(**{**entry["load"], **how}) for entry in measured]
        for member, entry in zip(members, measured, strict=True):
            check_fingerprint(member.card, entry["fingerprint"], path)
        statistics = [ReferenceStatistics(e["mean"], e["std"], e["n"]) for e in measured]
        if weights is None:
            weights = [entry.get("weight", 1.0) for entry in measured]
        elif isinstance(weights, Mapping):
            weights = _by_name(weights, [member.card.name for member in members])
        return cls(members, statistics, weights, reference["set"]["name"])

    def input_size(self, height: int, width: int) -> tuple:
        """The members' input sizes: pictures that agree in all of them can share a batch."""
        return tuple(member.input_size(height, width) for member in self.members)

    def score_runs(self, runs: Iterable[Tensor]) -> Tensor:
        self._check_devices()
        runs = list(runs)  # every member prepares its own input from the same pixels, 8-bit or not
        return self._combine(member.score_runs(runs) for member in self.members)

    def forward(self, images: Tensor, prompts: list[str] | None = None) -> Tensor:
        self._check_devices()
        check_images(images, self.device)
        return self._combine(member(images, prompts) for member in self.members)

    def score_video(self, frames: Tensor) -> Tensor:
        self._check_devices()
        return self._combine(member.score_video(frames) for member in self.members)

    def with_video_frames(self, count: int | None) -> Ensemble:
        members = [member.with_video_frames(count) for member in self.members]
        return Ensemble(members, self.statistics, self.weights, self.reference).freeze()

    @property
    def judges_frames_alone(self) -> bool:
        return all(member.judges_frames_alone for member in self.members)

    def _check_devices(self) -> None:
        # Not before they are used: a memory manager may have moved only some of them until then.
        if len({member.device for member in self.members}) > 1:
            devices = ", ".join(f"{m.card.name} on {m.device}" for m in self.members)
            raise ValueError(f"an ensemble's members share one device: {devices}")

    def _combine(self, scores: Iterable[Tensor]) -> Tensor:
        """The members' scores [B], in their order, to the ensemble's [B]."""
        parts = zip(scores, self.statistics, self.weights, strict=True)
        return sum(w * standardize(s, mean, std) for s, (mean, std, _), w in parts if w)

    @property
    def _card(self) -> ScorerCard:
        cards = [member.card for member in self.members]
        shared = set.intersection(*(set(card.capabilities) for card in cards))
        return ScorerCard(
            name="ensemble of " + ", ".join(card.name for card in cards),
            licence=" and ".join(dict.fromkeys(card.licence for card in cards)),
            unit=f"weighted mean of standardised scores, 0 the average of {self.reference}",
            range=self._range(cards),
            task=cards[0].task if len({card.task for card in cards}) == 1 else "mixed",
            capabilities=tuple(sorted(shared & {"differentiable", "score_video"})),
            limits="; ".join(f"{card.name}: {card.limits}" for card in cards if card.limits),
            out_of_scope="; ".join(dict.fromkeys(c.out_of_scope for c in cards if c.out_of_scope)),
            fingerprint={f"member {i}": self._member(i, card) for i, card in enumerate(cards, 1)},
        )

    def _member(self, number: int, card: ScorerCard) -> str:
        mean, std, _ = self.statistics[number - 1]
        weight = self.weights[number - 1]
        return f"{card.name} {card.fingerprint_id} mean {mean!r} std {std!r} weight {weight!r}"

    def _range(self, cards: list[ScorerCard]) -> tuple[float, float]:
        bounds = [
            [weight * (bound - mean) / std for bound in card.range]
            for card, (mean, std, _), weight in zip(
                cards, self.statistics, self.weights, strict=True
            )
            if weight
        ]
        return sum(low for low, _ in bounds), sum(high for _, high in bounds)


def load_ensemble(
    path: Path,
    *,
    task: str = "quality",
    device: torch.device,
    dtype: torch.dtype | None,
    revision: str | None = None,
) -> Ensemble:
    """See `load_scorer`: the file names its scorers, their tasks and their revisions."""
    if task != "quality" or revision is not None:
        raise ValueError(f"{path} names its scorers' tasks and revisions: give neither")
    return Ensemble.from_reference(path, device=device, dtype=dtype or "checkpoint")


def read_reference(path: str | Path) -> dict[str, Any]:
    """What `tastemaker calibrate` wrote: the set, and for each scorer how to load it and its statistics.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    path = Path(path)
    reference = read_json(path)
    if reference.get("tastemaker") != "reference":
        raise ValueError(f"not made by tastemaker calibrate: {path}")
    if not reference.get("members") or not reference.get("set"):
        raise ValueError(f"{path} lacks the set or the scorers")
    value(value(reference, "set", OBJECT, path), "name", TEXT, f"{path}: set")
    for number, entry in enumerate(value(reference, "members", ENTRIES, path), 1):
        _check_entry(entry, f"{path}: scorer {number}")
    return reference


def _check_nesting(path: Path, outer: tuple[Path, ...] = ()) -> None:
    """Raises ValueError for an ensemble that holds itself, by way of others or not."""
    outer = (*outer, path.resolve())
    for entry in read_reference(path)["members"]:
        member = Path(entry["load"]["name_or_path"]).expanduser()
        if member.suffix == ".json" and member.is_file():
            if member.resolve() in outer:
                raise ValueError(f"{path} names {member}, an ensemble that it is part of itself")
            _check_nesting(member, outer)


def _check_entry(entry: Mapping[str, Any], source: str) -> None:
    for key, kind in ENTRY.items():
        value(entry, key, kind, source)
    for key, kind in (("weight", WEIGHT), ("calibration", OBJECT), ("name", TEXT)):
        if key in entry:
            value(entry, key, kind, source)
    value(entry["load"], "name_or_path", TEXT, f"{source}: load")
    value(entry["fingerprint"], "scorer", TEXT, f"{source}: fingerprint")


def statistics_from_reference(
    path: str | Path, cards: Sequence[ScorerCard]
) -> tuple[list[ReferenceStatistics], str]:
    """What a file of `tastemaker calibrate` measured of these scorers, and the name of its set.

    Raises:
        ValueError: it does not know one of them, or measured it with other weights or settings.
    """
    reference = read_reference(path)
    statistics = []
    for card in cards:
        entries = [e for e in reference["members"] if e["fingerprint"].get("scorer") == card.name]
        same = [e for e in entries if e["fingerprint"].get("task") == card.task] or entries
        if not same:
            known = ", ".join(e["fingerprint"].get("scorer", "?") for e in reference["members"])
            raise ValueError(f"{path} did not measure {card.name} (it measured {known})")
        check_fingerprint(card, same[0]["fingerprint"], path)
        statistics.append(ReferenceStatistics(same[0]["mean"], same[0]["std"], same[0]["n"]))
    return statistics, reference["set"]["name"]


def check_fingerprint(card: ScorerCard, stored: Mapping[str, str], path: str | Path) -> None:
    if dict(stored) != dict(card.fingerprint):
        what = differences(stored, card.fingerprint)
        raise ValueError(
            f"{card.name} is not as it was measured in {path} ({what}): calibrate again"
        )


def _by_name(weights: Mapping[str, float], names: list[str]) -> list[float]:
    if unknown := sorted(set(weights) - set(names)):
        raise ValueError(f"no member is called {', '.join(unknown)}: {', '.join(names)}")
    return [weights.get(name, 0.0) for name in names]


def _shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The weights divided by their sum."""
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise ValueError(f"weights must be one a member: {count}, got {len(weights)}")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(f"weights must be finite, not negative and not all 0, got {weights}")
    return tuple(weight / sum(weights) for weight in weights)
