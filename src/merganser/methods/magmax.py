"""MagMax: keep, entry by entry, the largest update of any task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import beside, read_weights, write_weights

if TYPE_CHECKING:
    from merganser.weights import Weights

LARGEST = "largest.safetensors"


class MagMaxOptions(MethodOptions):
    """MagMax: sequential fine-tuning, merged by the magnitude of the updates."""

    name: Literal["magmax"] = "magmax"
    scale: float = Field(0.5, ge=0, allow_inf_nan=False, description="factor on the merged update when it is deployed")


class MagMax(Method[MagMaxOptions]):
    r"""Deploy :math:`\theta_0 + \lambda \tau^*`, where each entry of :math:`\tau^*` is the
    :math:`\tau_i = \theta_i - \theta_0` of largest magnitude there, ties to the later task.

    Each task is trained from the weights of the one before, not from the merged ones. What is kept is the unscaled
    :math:`\tau^*`: folding updates into it one by one gives that of all of them.

    Source: Marczak et al. 2024, "MagMax: Leveraging Model Merging for Seamless Continual Learning" (arXiv 2407.06322).
    """

    Options = MagMaxOptions
    title = "MagMax"
    paper = "Marczak 2024, arXiv 2407.06322"
    idea = "Keep training; deploy half of the largest update that any task has made to each weight."
    stores = "the weights, the last task's own, the pretrained ones and the largest updates (4 P)"
    start = "trained"

    _largest: Weights | None = None

    def after_task(self, context: TaskContext) -> None:
        from merganser.merging.magmax import fold
        from merganser.weights import Weights

        current, origin = Weights.of(context.backbone.module), context.pretrained()
        trained = current.snapshot()
        with timed_merge(self.records):
            update = trained.minus(origin)
            if self._largest is None:
                largest = update
            else:
                kept = beside(self._largest, update)
                largest = Weights({name: fold(kept[name], new) for name, new in update.items()})
            # Of the entries that any task has changed, those in which this one changed most.
            changed = sum(int(value.count_nonzero()) for value in largest.values())
            won = sum(int(((value == update[name]) & (value != 0)).sum()) for name, value in largest.items())
            for name, value in current.items():
                value.copy_(origin[name] + self.options.scale * largest[name])
            self._largest = largest
        share = won / changed if changed else 0.0
        record_merge(
            self.records,
            context,
            trained=trained,
            before=context.before(),
            weight_new=self.options.scale * share,
            weight_old=self.options.scale * (1 - share),
            start=context.trained(context.index - 1),
        )

    def keeps_pretrained(self, lora: bool) -> bool:
        return True

    def save(self, folder: Path) -> None:
        if self._largest is not None:
            write_weights(folder / LARGEST, self._largest)

    def load(self, folder: Path) -> None:
        self._largest = read_weights(folder / LARGEST)

    def bytes_kept(self) -> dict[str, int]:
        return {} if self._largest is None else {"largest updates": self._largest.nbytes}
