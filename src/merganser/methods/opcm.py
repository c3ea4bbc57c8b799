"""OPCM: project each task's update away from the merged update, add it and rescale the sum."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merganser.errors import InputError
from merganser.events import Notice
from merganser.methods.base import Method, MethodOptions, TaskContext
from merganser.methods.shared.merge_records import record_merge, timed_merge
from merganser.methods.shared.method_state import read_weights, write_weights

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.merging.adapters import Factors
    from merganser.merging.opcm import OpcmState
    from merganser.weights import Weights

FACTORS, NUMBERS = "merged.safetensors", "opcm.json"


class OpcmOptions(MethodOptions):
    """OPCM: tasks trained from the pretrained weights, merged by orthogonal projection."""

    name: Literal["opcm"] = "opcm"
    share_of_spectrum: float = Field(
        0.5, ge=0, le=1, description="share of the merged update's spectrum that new updates do not change"
    )


class Opcm(Method[OpcmOptions]):
    r"""Deploys :math:`m_t = \theta_0 + (\lambda_{t-1} M + P(\tau_t)) / \lambda_t` with :math:`M = m_{t-1} - \theta_0`
    (:func:`merganser.merging.opcm.opcm`), one tensor at a time.

    With LoRA an update is the product BA of a module's factors. What is kept is the merged update itself, exactly, as
    factors of growing rank; what is deployed is its best approximation of the adapter's rank.

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
        new: list[float] = [0.0, 0.0, 0.0]  # |tau|^2, |M|^2, <tau, M>
        lost = 0.0
        with timed_merge(self.records):
            for a_name, value in current.items():
                b_name = a_name.replace(".lora_A.", ".lora_B.")
                if a_name != b_name and b_name in current:
                    terms, error = self._merge_module(context.index, a_name, value, current[b_name])
                    lost = max(lost, error)
                elif ".lora_B." not in a_name:
                    terms = self._merge_tensor(context.index, a_name, value, origin[a_name], before[a_name])
                else:
                    continue
                new = [total + term for total, term in zip(new, terms, strict=True)]
        if context.index == 1:
            return
        if lost > 1e-3:
            text = f"OPCM after '{context.task}': the adapter's rank leaves out up to {lost:.1%} of a merged update."
            context.listener(Notice(text))
        scales = {name: numbers[0] for name, numbers in self._numbers.items()}
        norm_new, norm_old = math.sqrt(new[0]), math.sqrt(new[1])
        record_merge(
            self.records,
            context,
            trained=trained,
            before=before,
            weight_new=sum(1 / scale for scale in scales.values()) / len(scales),
            weight_old=sum(last[name] / scale for name, scale in scales.items()) / len(scales),
            start=origin,
            sizes=(norm_new, norm_old, new[2] / (norm_new * norm_old) if norm_new * norm_old > 0 else None),
        )

    def _state(self, index: int, name: str, update: object) -> OpcmState | None:
        """Return the state of a tensor with its merged update; ``None`` before the second task."""
        from merganser.merging.opcm import OpcmState

        if index == 1:
            return None
        scale, norm = self._numbers[name]
        return OpcmState(update, scale, norm, index - 1)  # type: ignore[arg-type]

    def _merge_tensor(
        self, index: int, name: str, value: Tensor, origin: Tensor, before: Tensor
    ) -> tuple[float, float, float]:
        """Merge one tensor in place; return squared norms of its update and the merged one, and their inner product."""
        from merganser.merging.opcm import fold
        from merganser.merging.tensors import like, to_work

        base = to_work(origin)
        update, merged = to_work(value) - base, to_work(before) - base
        kept = fold(self._state(index, name, merged), update, share_of_spectrum=self.options.share_of_spectrum)
        self._numbers[name] = kept.scale, kept.mean_norm
        value.copy_(like(base + kept.update, value))
        return float((update**2).sum()), float((merged**2).sum()), float((update * merged).sum())

    def _merge_module(self, index: int, name: str, a: Tensor, b: Tensor) -> tuple[tuple[float, float, float], float]:
        """Merge one pair of factors in place; return as :meth:`_merge_tensor`, and the relative truncation error."""
        import numpy as np
        import torch

        from merganser.merging.adapters import Factors, inner_product, truncate
        from merganser.merging.opcm import fold_factors

        new = Factors(a.detach().float().cpu().numpy().astype(np.float64), b.detach().float().cpu().numpy())
        old = self._factors.get(name)
        state = None if old is None else (old, self._state(index, name, None))
        factors, kept = fold_factors(state, new, share_of_spectrum=self.options.share_of_spectrum)  # type: ignore[arg-type]
        # Rounded as when stored, so that a resumed run continues with the same numbers.
        self._factors[name] = Factors(factors.a.astype(np.float32), factors.b.astype(np.float32))
        self._numbers[name] = kept.scale, kept.mean_norm
        deployed, error = truncate(self._factors[name], new.rank)
        with torch.no_grad():
            a.zero_()[: deployed.rank].copy_(torch.from_numpy(deployed.a))
            b.zero_()[:, : deployed.rank].copy_(torch.from_numpy(deployed.b))
        if old is None:
            return (inner_product(new, new), 0.0, 0.0), error
        return (inner_product(new, new), inner_product(old, old), inner_product(new, old)), error

    def save(self, folder: Path) -> None:
        from merganser.files.atomic import write_json

        write_json(folder / NUMBERS, self._numbers)
        if self._factors:
            write_weights(folder / FACTORS, self._tensors())

    def load(self, folder: Path) -> None:
        from merganser.merging.adapters import Factors

        try:
            numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
            self._numbers = {name: (float(scale), float(norm)) for name, (scale, norm) in numbers.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"What the method keeps in '{folder / NUMBERS}' cannot be read: {error}.",
                "Restore the run from a copy.",
            ) from error
        self._factors = {}
        modules = [name for name in self._numbers if ".lora_A." in name]
        if modules:
            tensors = read_weights(folder / FACTORS)
            for name in modules:
                self._factors[name] = Factors(tensors[f"{name}:a"].numpy(), tensors[f"{name}:b"].numpy())

    def _tensors(self) -> Weights:
        import torch

        from merganser.weights import Weights

        return Weights(
            {
                f"{name}:{side}": torch.from_numpy(getattr(factors, side))
                for name, factors in self._factors.items()
                for side in ("a", "b")
            }
        )

    def bytes_kept(self) -> dict[str, int]:
        sizes = {"norms": 16 * len(self._numbers)}
        if self._factors:
            sizes["merged update"] = self._tensors().nbytes
        return sizes
