"""How important every single weight is to what is being trained: Recurrent-KIF's scores.

Source: Feng et al., arXiv 2502.17510; the smoothing is that of AdaLoRA (Zhang et al. 2023, arXiv 2303.10512).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from merganser.weights import Weights, local

AVERAGE, UNCERTAINTY = "importance average/", "importance uncertainty/"
"""Prefixes of the names in a checkpoint; no parameter has a name like that."""


class Importance:
    r"""Scores of the trainable weights, over the optimizer steps since :meth:`reset`.

    With :math:`I = |w g|` of a step, the gradient as the optimizer uses it: the average
    :math:`\bar I \leftarrow \beta \bar I + (1 - \beta) I`, then the uncertainty
    :math:`U \leftarrow \beta U + (1 - \beta) |I - \bar I|`, both from 0. The score is :math:`\bar I U`. Everything is
    local to the shards of this process.

    Args:
        model: whose trainable parameters are scored.
        smoothing: :math:`\beta`.
    """

    def __init__(self, model: nn.Module, smoothing: float) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._weights = Weights.of(model)
        self.smoothing = smoothing
        self.average, self.uncertainty = self._weights.snapshot(), self._weights.snapshot()
        self.reset()

    @torch.no_grad()
    def observe(self) -> None:
        """Take in one step: called when the gradients are complete, before the optimizer uses them."""
        kept, added = self.smoothing, 1.0 - self.smoothing
        for name, parameter in self._parameters.items():
            average, uncertainty = self.average[name], self.uncertainty[name]
            now = torch.zeros_like(average)
            if parameter.grad is not None:
                now = (self._weights[name] * local(parameter.grad)).abs()
            average.mul_(kept).add_(now, alpha=added)
            uncertainty.mul_(kept).add_((now - average).abs(), alpha=added)

    def scores(self) -> Weights:
        """Return the average times uncertainty, in memory of its own."""
        return self.average.like({name: self.average[name] * self.uncertainty[name] for name in self.average})

    def end_phase(self) -> Weights:
        """Return the scores of the phase that ends; another one begins."""
        scores = self.scores()
        self.reset()
        return scores

    def reset(self) -> None:
        """Begin a phase."""
        torch._foreach_zero_([*self.average.tensors, *self.uncertainty.tensors])

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what it holds between two steps, by name."""
        kinds = ((AVERAGE, self.average), (UNCERTAINTY, self.uncertainty))
        return {f"{kind}{name}": tensor for kind, held in kinds for name, tensor in held.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore :meth:`state_tensors`; other names are left alone."""
        for kind, held in ((AVERAGE, self.average), (UNCERTAINTY, self.uncertainty)):
            saved = {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
            held.copy_(held.like(saved))
