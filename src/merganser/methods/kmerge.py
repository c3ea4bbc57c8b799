"""K-Merge: keep at most K models; merge a further one into the most similar of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.files.atomic import write_text
from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import read_json_state

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.weights import Weights

KEPT = "slots.json"


class KMergeOptions(MethodOptions):
    """K-Merge: a bounded number of adapters (or models)."""

    name: Literal["kmerge"] = "kmerge"
    models: int = Field(4, ge=1, description="maximum number of models kept (K)")
    threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="K-Merge++: similarity from which a task is merged although there is room; null: none",
    )
    compat: Literal["reference"] | None = Field(
        None, description="reference: combines factors as the authors' program does, by square roots of the weights"
    )


def updates(weights: Weights, origin: Weights) -> list[tuple[Tensor, Tensor] | Tensor]:
    """List the updates layer by layer: factors (B, A) of an adapter, or the differences of whole weights."""
    if not any(".lora_A." in name for name in weights):
        return list(weights.minus(origin).tensors)
    names = [name for name in weights if ".lora_A." in name]
    return [(weights[name.replace(".lora_A.", ".lora_B.")], weights[name]) for name in names]


def similarity(first: Weights, second: Weights, origin: Weights) -> float:
    r"""Compute the mean over layers of the cosine between two models' updates; a layer that either keeps counts 0.

    For adapters of :math:`\langle B_1 A_1, B_2 A_2\rangle = \mathrm{tr}((B_1' B_2)(A_2 A_1'))`: the products are never
    formed.
    """
    cosines = []
    for a, b in zip(updates(first, origin), updates(second, origin), strict=True):
        norms = (_inner(a, a) * _inner(b, b)) ** 0.5
        cosines.append(_inner(a, b) / norms if norms > 0 else 0.0)
    return sum(cosines) / len(cosines)


def _inner(first: tuple[Tensor, Tensor] | Tensor, second: tuple[Tensor, Tensor] | Tensor) -> float:
    if isinstance(first, tuple) and isinstance(second, tuple):
        (b, a), (d, c) = first, second
        return float(((b.T.double() @ d.double()) * (a.double() @ c.T.double())).sum())
    assert not isinstance(first, tuple)
    assert not isinstance(second, tuple)
    return float((first.double() * second.double()).sum())


def combine_roots(current: Weights, kept: Weights, share: float) -> None:
    r"""Combine two models in place as PEFT's ``add_weighted_adapter`` with ``combination_type="linear"``.

    Each factor of an adapter is weighted by :math:`\sqrt{w}`, so that a single product BA has weight w; with two, the
    mixed products have weight :math:`\sqrt{w (1 - w)}`. Other tensors are averaged.

    Args:
        current: weights of share ``share``; they become the result.
        kept: weights of share ``1 - share``.
    """
    for name, value in current.items():
        power = 0.5 if ".lora_A." in name or ".lora_B." in name else 1.0
        value.mul_(share**power).add_(kept[name], alpha=(1 - share) ** power)


class KMerge(Method[KMergeOptions]):
    r"""Train a fresh adapter per task and keep at most K; a task is answered by the one that it was merged into.

    While there is room, the new one is kept beside the others (K-Merge++: if none of them is as similar as
    ``threshold``). Otherwise it goes into the most similar one as the n-th of its tasks: :math:`\theta \leftarrow
    \theta + (\theta_t - \theta) / n`.

    Source: "K-Merge: Online Continual Merging of Adapters for On-device Large Language Models" (arXiv 2510.13537).
    """

    Options = KMergeOptions
    title = "K-Merge"
    paper = "2025, arXiv 2510.13537"
    idea = "Keep at most K adapters: merge a new one into the most similar; a task uses the one that contains it."
    stores = "at most K sets of weights (K P) and the pretrained weights (P)"
    start = "pretrained"
    per_task_models = True

    def __init__(self, options: KMergeOptions) -> None:
        super().__init__(options)
        self.slots: list[list[int]] = []
        """For each model, the rows of the run whose tasks it contains, in order; the last row stores it."""

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        has_room, threshold = len(self.slots) < self.options.models, self.options.threshold
        if not self.slots or (has_room and threshold is None):
            self.slots.append([context.index])
            return
        with timed_merge(self.records):
            current, origin = Weights.of(context.backbone.module), context.pretrained()
            kept = [context.deployed(rows[-1]) for rows in self.slots]
            similarities = [similarity(current, model, origin) for model in kept]
            best = max(range(len(kept)), key=lambda i: similarities[i])
        if has_room and threshold is not None and similarities[best] < threshold:
            self.slots.append([context.index])
            return
        self.slots[best].append(context.index)
        share = 1 / len(self.slots[best])
        record_merge(
            self.records,
            context,
            trained=current,
            before=kept[best],
            weight_new=share,
            weight_old=1 - share,
            start=origin,
        )
        with timed_merge(self.records):
            if self.options.compat == "reference":
                combine_roots(current, kept[best], share)
            else:
                current.combine_(share, [(1 - share, kept[best])])

    def answered_by(self, learned: Mapping[str, int]) -> dict[str, int]:
        last = {row: rows[-1] for rows in self.slots for row in rows}
        return {task: last[row] for task, row in learned.items()}

    def _text(self) -> str:
        return json.dumps({"slots": self.slots}) + "\n"

    def bytes_kept(self) -> dict[str, int]:
        return {"slots": len(self._text())}

    def uses_products(self) -> bool:
        return True

    def save(self, folder: Path) -> None:
        write_text(folder / KEPT, self._text())

    def load(self, folder: Path) -> None:
        self.slots = read_json_state(
            folder / KEPT, lambda content: [[int(row) for row in rows] for rows in content["slots"]]
        )
