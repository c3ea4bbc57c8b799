"""SLAO: one adapter, whose A begins at an orthonormal basis of the last one and whose B is merged ever more slowly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from merganser.weights import Weights


class SlaoOptions(MethodOptions):
    """SLAO: orthonormal starts, time-aware merging of one adapter."""

    name: Literal["slao"] = "slao"


def orthonormal_rows(a: Tensor) -> Tensor:
    """Compute an orthonormal basis of the row space of ``a`` (r x in), as rows; if r > in, further rows are zero.

    From ``a' = Q R``; each row is turned so that the diagonal of R is not negative, which makes the basis unique.
    """
    import torch

    q, upper = torch.linalg.qr(a.T.double())
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0)
    basis = torch.zeros_like(a)
    basis[: q.shape[1]] = (q * signs).T.to(a.dtype)
    return basis


class Slao(Method[SlaoOptions]):
    r"""Train each task from :math:`A = \mathrm{orth}(A_{t-1}), B = B_{t-1}`, the last task's own factors.

    After it :math:`A_m \leftarrow A_t` and :math:`B_m \leftarrow B_m + (B_t - B_m) / \sqrt t`.

    Source: "Merge before Forget: A Single LoRA Continual Learning via Continual Merging", 2025 (arXiv 2512.23017).
    """

    Options = SlaoOptions
    title = "SLAO"
    paper = "2025, arXiv 2512.23017"
    idea = "Start A from an orthonormal basis of the last A, B from the last B; merge B with a weight that falls."
    stores = "the merged and the last task's own adapter (2 p)"
    start = "trained"
    lora_only = True

    _start: Weights | None = None

    def begin_task(self) -> None:
        super().begin_task()
        self._start = None

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from merganser.weights import Weights

        if context.index > 1:
            weights = Weights.of(context.backbone.module)
            for name, value in weights.items():
                if ".lora_A." in name:
                    value.copy_(orthonormal_rows(value))
            self._start = weights.snapshot()
        return []

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        if self._start is None:
            return
        current, share = Weights.of(context.backbone.module), 1 / math.sqrt(context.index)
        merged = context.before()
        record_merge(
            self.records,
            context,
            trained=current,
            before=merged,
            weight_new=share,
            weight_old=1 - share,
            start=self._start,
        )
        with timed_merge(self.records):
            for name, value in current.items():
                if ".lora_B." in name:
                    value.mul_(share).add_(merged[name], alpha=1 - share)
