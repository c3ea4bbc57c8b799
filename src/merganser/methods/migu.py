"""MIGU: update only the output units that are most active in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from merganser.methods.base import Method, MethodOptions, TaskContext

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import TrainerCallback


class MiguOptions(MethodOptions):
    """MIGU: magnitude-based gradient updating."""

    name: Literal["migu"] = "migu"
    share: float = Field(0.3, gt=0, le=1, description="share of a layer's output units that each step updates")
    mask_first: bool = Field(False, description="mask the gradients of the first task, too")


def magnitudes(output: Tensor) -> Tensor:
    """Compute the activity of each output unit: mean over positions of ``|h_j| / sum_k |h_k|`` (units, fp32).

    Args:
        output: of a layer, ... x units.
    """
    sizes = output.detach().float().abs().flatten(0, -2)
    return (sizes / sizes.sum(-1, keepdim=True).clamp(min=1e-12)).mean(0)


def most_active(activity: Tensor, share: float) -> Tensor:
    """Mark the fraction ``share`` of units with the largest activity, at least one (units, bool)."""
    import torch

    chosen = torch.zeros_like(activity, dtype=torch.bool)
    chosen[activity.topk(max(1, round(share * activity.numel()))).indices] = True
    return chosen


class Migu(Method[MiguOptions]):
    """Mask the gradients of every trained matrix by the activity of its output units in the step's batches.

    With whole weights the rows of each linear layer; with an adapter the rows of B, by the activity of the layer that
    the adapter belongs to (the output of B alone is zero when it starts). Everything else is trained as ever, and so is
    the first task, which has no earlier one to protect.

    Source: Du et al. 2024, "Unlocking Continual Learning Abilities in Language Models" (arXiv 2406.17245).
    """

    Options = MiguOptions
    title = "MIGU"
    paper = "Du 2024, EMNLP, arXiv 2406.17245"
    idea = "Update only the 30 % of each layer's output units that are most active in the batch."

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        from transformers import TrainerCallback

        if context.index == 1 and not self.options.mask_first:
            return []
        layers = masked_layers(context.backbone.module)
        share = self.options.share

        class Masking(TrainerCallback):
            def __init__(self) -> None:
                self.activity: dict[str, Tensor] = {}
                self.hooks: list[Any] = []

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.hooks = [
                    layer.register_forward_hook(self.watching(name)) for name, (layer, _, _) in layers.items()
                ]

            def watching(self, name: str) -> Any:
                def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
                    # Batches that are added up for one step share one mask.
                    if layer.training:
                        self.activity[name] = self.activity.get(name, 0.0) + magnitudes(output)

                return hook

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                for name, (_, parameters, axis) in layers.items():
                    if name not in self.activity:
                        continue
                    chosen = most_active(self.activity[name], share)
                    for parameter in parameters:
                        if parameter.grad is not None:
                            rows = chosen if parameter.ndim == 1 or axis == 1 else chosen.unsqueeze(1)
                            parameter.grad.mul_(rows)
                self.activity.clear()

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                for hook in self.hooks:
                    hook.remove()

        return [Masking()]


def masked_layers(module: nn.Module) -> dict[str, tuple[nn.Module, list[nn.Parameter], int]]:
    """Map name -> layer, its trained parameters with a row (or entry) per output unit, and the axis of those units.

    The axis is 0 but for GPT-2's ``Conv1D``, which stores its matrix transposed.
    """
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    from merganser.models.lora import linear_layers

    layers: dict[str, tuple[nn.Module, list[nn.Parameter], int]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            factors = [part.weight for part in layer.lora_B.values() if part.weight.requires_grad]
            layers[name] = (layer, factors, 0)
    if layers:
        return layers
    for name, layer in linear_layers(module).items():
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        if trained:
            layers[name] = (layer, trained, 1 if isinstance(layer, Conv1D) else 0)
    return layers
