"""Gradient projection: training that preserves every layer's outputs for inputs of earlier tasks.

The outputs of a layer ``y = W x`` for inputs within a subspace stay the same if W changes only orthogonally to it. The
subspace of a task's inputs is estimated layer by layer from a sample of them.

Source: Saha et al. 2021, Gradient Projection Memory for Continual Learning (GPM), arXiv 2103.09762.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merganser.models.base import IGNORE_INDEX, eval_mode
from merganser.models.pairs import model_inputs
from merganser.training.rehearsal import Collator, to_device
from merganser.training.state import TaskState
from merganser.weights import Weights


def trained_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Map each trainable matrix to the layer that multiplies by it; with LoRA each factor is such a layer."""
    from transformers.pytorch_utils import Conv1D

    layers = {}
    for name, weight in module.named_parameters():
        path, _, last = name.rpartition(".")
        if weight.requires_grad and last == "weight":
            layer = module.get_submodule(path)
            if isinstance(layer, nn.Linear | Conv1D):
                layers[name] = layer
    return layers


def extend_basis(basis: Tensor | None, inputs: Tensor, energy: float) -> Tensor:
    """Extend an orthonormal basis of a layer's inputs until it spans enough of a new task's.

    With ``R`` the inputs and ``R'`` their residual outside of the basis, the fewest leading left singular vectors of
    ``R'`` are added for which ``|R - R'|^2 + |R'_k|^2 >= energy |R|^2`` (GPM, equation 9).

    Args:
        basis: width x directions, or ``None``.
        inputs: inputs of the layer, rows x width.
        energy: fraction of the squared norm to span, in [0, 1].

    Returns:
        width x directions, in single precision.
    """
    rows = inputs.double()
    required = energy * float(rows.square().sum())
    old = rows.new_zeros(rows.shape[1], 0) if basis is None else basis.to(rows)
    residual = rows - (rows @ old) @ old.T
    covered = float(rows.square().sum() - residual.square().sum())
    _, spectrum, directions = torch.linalg.svd(residual, full_matrices=False)
    reached = covered + spectrum.square().cumsum(0)
    number = 0 if covered >= required else min(int((reached < required).sum()) + 1, rows.shape[1] - old.shape[1])
    # Directions of rounding noise are left out.
    number = min(number, int((spectrum > spectrum.amax() * 1e-7).sum()))
    extended, _ = torch.linalg.qr(torch.cat([old, directions[:number].T], 1))
    # In the memory layout of tensors read from files: the rounding of a product depends on it.
    return extended.float().contiguous()


def extend_bases(
    module: nn.Module,
    bases: Mapping[str, Tensor],
    features: Sequence[dict[str, Any]],
    collate: Collator,
    *,
    energy: float,
    batch: int = 8,
    examples: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Extend the bases of all trained layers by their inputs for some examples; dropout off, padding left out.

    Args:
        module: the model after the task.
        bases: name of the matrix -> its basis so far.
        features: tokenised examples of the task.
        collate: turns a list of them into a batch.
        energy: see :func:`extend_basis`.
        batch: examples per forward pass.
        examples: number of examples, drawn at random; ``None``: all.
        seed: of the draw.

    Returns:
        Name of the matrix -> extended basis (width x directions).
    """
    sample = list(features)
    if examples is not None:
        order = np.random.default_rng(seed).permutation(len(features))
        sample = [features[index] for index in order[:examples].tolist()]
    device = next(module.parameters()).device
    layer_inputs: dict[str, list[Tensor]] = {}
    masks: list[Tensor] = []

    def make_hook(name: str) -> Any:
        def read_inputs(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            layer_inputs.setdefault(name, []).append(_rows(arguments[0].detach(), masks).float())

        return read_inputs

    hooks = [layer.register_forward_pre_hook(make_hook(name)) for name, layer in trained_layers(module).items()]
    try:
        with eval_mode(module), torch.no_grad():
            for start in range(0, len(sample), batch):
                inputs = to_device(collate(sample[start : start + batch]), device)
                masks[:] = _masks(inputs)
                module(**model_inputs(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: extend_basis(bases.get(name), torch.cat(rows), energy) for name, rows in layer_inputs.items()}


def _masks(inputs: Mapping[str, Any]) -> list[Tensor]:
    """Return masks of a batch's inputs and answers: true where not padding (examples x positions)."""
    masks = [inputs["attention_mask"].bool()] if "attention_mask" in inputs else []
    labels = inputs.get("labels")
    return [*masks, labels != IGNORE_INDEX] if labels is not None and labels.ndim == 2 else masks


def _rows(inputs: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Flatten a layer's inputs to rows (rows x width), without positions that no mask of their shape keeps."""
    fitting = [mask for mask in masks if mask.shape == inputs.shape[:-1]]
    if fitting:
        return inputs[torch.stack(fitting).any(0)]
    return inputs.reshape(-1, inputs.shape[-1])


class GradientProjection(TrainerCallback):
    """Projects weight changes orthogonal to inputs of earlier tasks during a task's first steps.

    Gradients are projected before the optimizer step. AdamW divides entry by entry and so leaves the subspace;
    after its step the change since the start of the task is projected, too. Weights without a basis (biases, norms,
    embeddings) are frozen, because every input uses them.

    Args:
        module: the model at the start of the task.
        bases: name of a matrix -> orthonormal basis of its inputs (width x directions).
        steps: number of projected optimizer steps; later steps are unconstrained.

    Attributes:
        weights: the trainable weights, sharing their memory.
        reached: the weights when the projection ended; ``None`` before that.
    """

    def __init__(self, module: nn.Module, bases: Mapping[str, Tensor], steps: int) -> None:
        from transformers.pytorch_utils import Conv1D

        self.steps = steps
        self.reached: Weights | None = None
        self._parameters = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.weights = Weights(self._parameters)
        self._start = self.weights.snapshot()
        self._bases = {name: basis.to(self._parameters[name].device) for name, basis in bases.items()}
        self._transposed = {name for name, layer in trained_layers(module).items() if isinstance(layer, Conv1D)}
        if steps == 0:
            self.reached = self._start

    @torch.no_grad()
    def project_(self, name: str, change: Tensor) -> None:
        """Remove from a change of one weight, in place, the part that changes outputs for earlier inputs."""
        basis = self._bases.get(name)
        if basis is None:
            change.zero_()
            return
        basis = basis.to(change.dtype)
        if name in self._transposed:  # width x outputs
            change.sub_(basis @ (basis.T @ change))
        else:
            change.sub_((change @ basis) @ basis.T)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step < self.steps:
            for name, parameter in self._parameters.items():
                if parameter.grad is not None:
                    self.project_(name, parameter.grad)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step < self.steps:
            change = self.weights.minus(self._start)
            for name, part in change.items():
                self.project_(name, part)
            self.weights.combine_(0, [(1, self._start), (1, change)])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            self.reached = self.weights.snapshot()

    def task_state(self) -> TaskState:
        """Return the weights at the end of the projection, from which training resumes."""
        return TaskState() if self.reached is None else TaskState(tensors=dict(self.reached))

    def load_task_state(self, state: TaskState) -> None:
        """Restore what :meth:`task_state` returned."""
        if state.tensors:
            self.reached = self.weights.snapshot().copy_(Weights(state.tensors))
