"""OPCM: project each task's update away from the merged update, add it and rescale the sum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.events import Notice
from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import factor_tensors, read_factors, read_json_state, write_weights

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.merging.adapters import Factors
    from merganser.merging.opcm import OpcmState

FACTORS, NUMBERS = "merged.safetensors", "opcm.json"


class OpcmOptions(MethodOptions):
    """OPCM: tasks trained from the pretrained weights, merged by orthogonal projection."""

    name: Literal["opcm"] = "opcm"
    share_of_spectrum: float = Field(
        0.5, ge=0, le=1, description="share of the merged update's spectrum that new updates do not change"
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
        self._factors: dict[str, Factors] = {}
        self._numbers: dict[str, tuple[float, float]] = {}  # tensor or module -> lambda_t, mean norm of the updates

    def after_task(self, context: TaskContext) -> None:
        from merganser.weights import Weights

        current, origin = Weights.of(context.backbone.module), context.pretrained()
        trained, before = current.snapshot(), context.before()
        last = {name: numbers[0] for name, numbers in self._numbers.items()}
        sums = [0.0, 0.0, 0.0]  # |tau|^2, |M|^2, <tau, M>
        error = 0.0
        with timed_merge(self.records):
            for a_name, value in current.items():
                b_name = a_name.replace(".lora_A.", ".lora_B.")
                if a_name != b_name and b_name in current:
                    terms, module_error = self._merge_module(context.index, a_name, value, current[b_name])
                    error = max(error, module_error)
                elif ".lora_B." not in a_name:
                    terms = self._merge_tensor(context.index, a_name, value, origin[a_name], before[a_name])
                else:
                    continue
                sums = [total + term for total, term in zip(sums, terms, strict=True)]
        if context.index == 1:
            return
        if error > 1e-3:
            text = f"OPCM after '{context.task}': the adapter's rank leaves out up to {error:.1%} of a merged update."
            context.listener(Notice(text))
        scales = {name: numbers[0] for name, numbers in self._numbers.items()}
        norm_new, norm_old = math.sqrt(sums[0]), math.sqrt(sums[1])
        record_merge(
            self.records,
            context,
            trained=trained,
            before=before,
            weight_new=sum(1 / scale for scale in scales.values()) / len(scales),
            weight_old=sum(last[name] / scale for name, scale in scales.items()) / len(scales),
            start=origin,
            sizes=(norm_new, norm_old, sums[2] / (norm_new * norm_old) if norm_new * norm_old > 0 else None),
        )

    def _state(self, index: int, name: str, update: object) -> OpcmState | None:
        """Return the stored state of a tensor with its merged update; ``None`` before the second task."""
        from merganser.merging.opcm import OpcmState

        if index == 1:
            return None
        scale, norm = self._numbers[name]
        return OpcmState(update, scale, norm, index - 1)  # type: ignore[arg-type]

    def _merge_tensor(
        self, index: int, name: str, value: Tensor, origin: Tensor, before: Tensor
    ) -> tuple[float, float, float]:
        """Merge one tensor in place; return |tau|^2, |M|^2 and <tau, M>."""
        from merganser.merging.opcm import fold
        from merganser.merging.tensors import like, to_work

        base = to_work(origin)
        update, merged = to_work(value) - base, to_work(before) - base
        kept = fold(self._state(index, name, merged), update, share_of_spectrum=self.options.share_of_spectrum)
        self._numbers[name] = kept.scale, kept.mean_norm
        value.copy_(like(base + kept.update, value))
        return float((update**2).sum()), float((merged**2).sum()), float((update * merged).sum())

    def _merge_module(self, index: int, name: str, a: Tensor, b: Tensor) -> tuple[tuple[float, float, float], float]:
        """Merge one pair of factors in place; return the same, and the relative error of the deployed rank."""
        import numpy as np
        import torch

        from merganser.merging.adapters import Factors, inner_product, truncate
        from merganser.merging.opcm import fold_factors

        update = Factors(a.detach().float().cpu().numpy().astype(np.float64), b.detach().float().cpu().numpy())
        merged = self._factors.get(name)
        state = None if merged is None else (merged, self._state(index, name, None))
        factors, kept = fold_factors(state, update, share_of_spectrum=self.options.share_of_spectrum)  # type: ignore[arg-type]
        # Rounded as they are stored, so that a resumed run continues from the same numbers.
        self._factors[name] = Factors(factors.a.astype(np.float32), factors.b.astype(np.float32))
        self._numbers[name] = kept.scale, kept.mean_norm
        deployed, error = truncate(self._factors[name], update.rank)
        with torch.no_grad():
            a.zero_()[: deployed.rank].copy_(torch.from_numpy(deployed.a))
            b.zero_()[:, : deployed.rank].copy_(torch.from_numpy(deployed.b))
        products = (inner_product(merged, merged), inner_product(update, merged)) if merged is not None else (0.0, 0.0)
        return (inner_product(update, update), *products), error

    def save(self, folder: Path) -> None:
        from merganser.files.atomic import write_json

        write_json(folder / NUMBERS, self._numbers)
        if self._factors:
            write_weights(folder / FACTORS, factor_tensors(self._factors))

    def load(self, folder: Path) -> None:
        self._numbers = read_json_state(
            folder / NUMBERS,
            lambda content: {name: (float(scale), float(norm)) for name, (scale, norm) in content.items()},
        )
        has_factors = any(".lora_A." in name for name in self._numbers)
        self._factors = read_factors(folder / FACTORS) if has_factors else {}

    def bytes_kept(self) -> dict[str, int]:
        sizes = {"norms": 16 * len(self._numbers)}
        return {**sizes, "merged update": factor_tensors(self._factors).nbytes} if self._factors else sizes
