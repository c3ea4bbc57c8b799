"""Importance of every weight to the current phase of training: Recurrent-KIF's scores.

Source: Feng et al., arXiv 2502.17510; the smoothing is that of AdaLoRA (Zhang et al. 2023, arXiv 2303.10512).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from merganser.weights import Weights, local_shard

AVERAGE, UNCERTAINTY = "importance average/", "importance uncertainty/"
"""Prefixes of the names in a checkpoint, after that of the phase; no parameter has a name like that."""


class Importance:
    r"""Scores of the trainable weights to one phase, over its optimizer steps since :meth:`reset`.

    With :math:`I = |w g|` of a step, the gradient as the optimizer used it and the weights after it: the average
    :math:`\bar I \leftarrow \beta \bar I + (1 - \beta) I`, then the uncertainty
    :math:`U \leftarrow \beta U + (1 - \beta) |I - \bar I|`, both from 0. The score is :math:`\bar I U`. Everything is
    local to the shards of this process.

    Args:
        model: whose trainable parameters are scored.
        smoothing: :math:`\beta`.
        phase: its name, for the names in a checkpoint.
    """

    def __init__(self, model: nn.Module, smoothing: float, phase: str) -> None:
        self.phase = phase
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._weights = Weights.of(model)
        self.smoothing = smoothing
        self.average, self.uncertainty = self._weights.snapshot(), self._weights.snapshot()
        self.reset()

    @torch.no_grad()
    def observe(self) -> None:
        """Observe one step; called after the optimizer's step, before its gradients are cleared."""
        kept, added = self.smoothing, 1.0 - self.smoothing
        for name, parameter in self._parameters.items():
            average, uncertainty = self.average[name], self.uncertainty[name]
            importance = torch.zeros_like(average)
            if parameter.grad is not None:
                importance = (self._weights[name] * local_shard(parameter.grad)).abs()
            average.mul_(kept).add_(importance, alpha=added)
            uncertainty.mul_(kept).add_((importance - average).abs(), alpha=added)

    def scores(self) -> Weights:
        """Compute average times uncertainty, as new tensors."""
        return self.average.like({name: self.average[name] * self.uncertainty[name] for name in self.average})

    def reset(self) -> None:
        """Set all averages to zero."""
        torch._foreach_zero_([*self.average.tensors, *self.uncertainty.tensors])

    @property
    def _kinds(self) -> tuple[tuple[str, Weights], ...]:
        return (f"{self.phase} {AVERAGE}", self.average), (f"{self.phase} {UNCERTAINTY}", self.uncertainty)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state between two steps: name -> tensor."""
        return {f"{kind}{name}": tensor for kind, held in self._kinds for name, tensor in held.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_tensors`; other names are left alone."""
        for kind, held in self._kinds:
            saved = {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
            held.copy_(held.like(saved))
