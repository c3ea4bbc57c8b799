"""OPCM: project each task's update away from the merged update, add it and rescale the sum."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from merganser.events import Notice
from merganser.merging.opcm import SHARE_OF_SPECTRUM
from merganser.merging.opcm_model import OpcmModel
from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import factor_tensors, read_factors, read_json_state, write_weights

FACTORS, NUMBERS = "merged.safetensors", "opcm.json"


class OpcmOptions(MethodOptions):
    """OPCM: tasks trained from the pretrained weights, merged by orthogonal projection."""

    name: Literal["opcm"] = "opcm"
    share_of_spectrum: float = Field(
        SHARE_OF_SPECTRUM,
        ge=0,
        le=1,
        description="share of the merged update's spectrum that new updates do not change",
    )


class Opcm(Method[OpcmOptions]):
    r"""Deploy :math:`m_t = \theta_0 + (\lambda_{t-1} M + P(\tau_t)) / \lambda_t` with :math:`M = m_{t-1} - \theta_0`
    (:func:`merganser.merging.opcm.opcm`), one tensor at a time.

    With LoRA an update is the product BA of a module's factors. The exact merged update is stored, as factors of
    growing rank; its best approximation of the adapter's rank is deployed.

    Source: Tang et al. 2025, "Merging Models on the Fly Without Retraining" (arXiv 2501.09522).
    """

    Options = OpcmOptions
    title = "OPCM"
    paper = "Tang 2025, arXiv 2501.09522"
    idea = "Train each task from the pretrained weights; merge the part of its update orthogonal to earlier ones."
    stores = (
        "the weights and the pretrained weights (2 P), two numbers per tensor; "
        "with LoRA also the merged update (p per task, at most the full matrices)"
    )
    grows = True
    start = "pretrained"

    def __init__(self, options: OpcmOptions) -> None:
        super().__init__(options)
        self._state = OpcmModel()

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        current, origin = Weights.of(context.backbone.module), context.pretrained()
        trained, before = current.snapshot(), context.before()
        last = dict(self._state.numbers)
        with timed_merge(self.records):
            sizes = self._state.merge(context.index, current, origin, before, self.options.share_of_spectrum)
        if context.index == 1:
            return
        if sizes.error > 1e-3:
            left_out = f"{sizes.error:.1%} of a merged update"
            context.listener(Notice(f"OPCM after '{context.task}': the adapter's rank leaves out up to {left_out}."))
        scales = {name: scale for name, (scale, _) in self._state.numbers.items()}
        record_merge(
            self.records,
            context,
            trained=trained,
            before=before,
            weight_new=sum(1 / scale for scale in scales.values()) / len(scales),
            weight_old=sum(last[name][0] / scale for name, scale in scales.items()) / len(scales),
            start=origin,
            sizes=sizes.norms(),
        )

    def uses_products(self) -> bool:
        return True

    def save(self, folder: Path) -> None:
        from merganser.files.atomic import write_json

        write_json(folder / NUMBERS, self._state.numbers)
        if self._state.factors:
            write_weights(folder / FACTORS, factor_tensors(self._state.factors))

    def load(self, folder: Path) -> None:
        numbers: dict[str, tuple[float, float]] = read_json_state(
            folder / NUMBERS,
            lambda content: {name: (float(scale), float(norm)) for name, (scale, norm) in content.items()},
        )
        has_factors = any(".lora_A." in name for name in numbers)
        self._state = OpcmModel(numbers, read_factors(folder / FACTORS) if has_factors else {})

    def bytes_kept(self) -> dict[str, int]:
        factors = self._state.factors
        sizes = {"norms": 16 * len(self._state.numbers)}
        return {**sizes, "merged update": factor_tensors(factors).nbytes} if factors else sizes
