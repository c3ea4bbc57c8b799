"""PAM: keep a task's weights aligned in sign with the merged ones while training, then average them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from merganser.weights import Weights


class PamOptions(MethodOptions):
    """PAM: alignment with the merged model while training, running average after each task."""

    name: Literal["pam"] = "pam"
    every: int = Field(10, ge=1, description="optimizer steps between two alignments")
    share: float = Field(
        0.5, ge=0, le=1, description="share of each tensor, its largest merged entries, that must keep their sign"
    )
    reset: Literal["zero", "merged"] = Field(
        "zero", description="what an entry of the other sign becomes: zero, or the merged model's value"
    )


def opposed(update: Tensor, merged: Tensor, share: float) -> Tensor:
    """Mark the largest entries of the merged update whose sign a task's update opposes.

    Args:
        update: the task's update of one tensor.
        merged: the merged model's update of it, same shape.
        share: of the entries of ``merged``, the largest in magnitude, that count; their number is rounded down.

    Returns:
        Booleans of that shape; a zero on either side opposes nothing.
    """
    import torch

    largest = torch.zeros(merged.numel(), dtype=torch.bool, device=merged.device)
    largest[merged.abs().flatten().topk(int(share * merged.numel())).indices] = True
    return largest.view_as(merged) & (update * merged < 0)


class Pam(Method[PamOptions]):
    r"""Train each task from the merged model and periodically reset entries of opposed sign.

    With :math:`W_g` the merged update and W the one being trained: every ``every`` steps the entries of W among the top
    ``share`` of :math:`|W_g|` with :math:`\mathrm{sign}(W) \ne \mathrm{sign}(W_g)` are reset. After task t
    :math:`W_g \leftarrow W_g + (W - W_g) / t`.

    Source: Sokar et al. 2025 (arXiv 2506.03189).
    """

    Options = PamOptions
    title = "PAM"
    paper = "Sokar 2025, arXiv 2506.03189"
    idea = "While training, reset entries whose sign disagrees with the merged model's; then average over all tasks."
    stores = "the weights (P), and without LoRA the pretrained ones (P)"

    _merged: Weights | None = None
    _origin: Weights | None = None

    def begin_task(self) -> None:
        super().begin_task()
        self._merged = self._origin = None

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from transformers import TrainerCallback

        from merganser.weights import Weights

        if context.index == 1:
            return []
        weights = Weights.of(context.backbone.module)
        self._merged = weights.snapshot()
        # The factors of an adapter are an update by themselves; whole weights are one against the pretrained model.
        if context.backbone.options.lora is None:
            self._origin = context.pretrained()
        method = self

        class Aligning(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step % method.options.every == 0:
                    with timed_merge(method.records):
                        method.align_(weights)

        return [Aligning()]

    def keeps_pretrained(self, lora: bool) -> bool:
        return not lora

    def align_(self, weights: Weights) -> None:
        """Reset, in place, the entries that oppose the merged model's."""
        assert self._merged is not None
        for name, value in weights.items():
            merged = self._merged[name]
            if self._origin is None:
                wrong, zero = opposed(value, merged, self.options.share), value.new_zeros(())
            else:
                zero = self._origin[name]
                wrong = opposed(value - zero, merged - zero, self.options.share)
            value.copy_((zero if self.options.reset == "zero" else merged).where(wrong, value))

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        if self._merged is None:
            return
        current, share = Weights.of(context.backbone.module), 1 / context.index
        record_merge(
            self.records, context, trained=current, before=self._merged, weight_new=share, weight_old=1 - share
        )
        with timed_merge(self.records):
            current.combine_(share, [(1 - share, self._merged)])
