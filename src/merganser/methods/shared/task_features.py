"""The mean feature of a task's inputs, by which tasks are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merganser.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from merganser.methods.base import TaskContext
    from merganser.weights import Weights


def pretrained_feature(context: TaskContext, current: Weights, pretrained: Weights) -> Tensor:
    """Compute the mean feature (width) of a task by the pretrained model, so that those of all tasks are comparable.

    Args:
        context: of the task.
        current: the model's weights, sharing its memory; unchanged afterwards.
        pretrained: their pretrained values.
    """
    trained = current.snapshot()
    current.copy_(pretrained)
    feature = mean_feature(context)
    current.copy_(trained)
    return feature


def mean_feature(context: TaskContext, batch: int = 32, examples: int = 512) -> Tensor:
    """Compute the mean feature (width) of the first ``examples`` inputs of a task, without dropout.

    The feature of an input is the mean over its tokens of the last hidden layer (of the encoder, if there is one); of
    a matcher the vector of the text or image.

    Raises:
        InputError: the task has no examples.
    """
    import torch

    from merganser.models.base import eval_mode
    from merganser.models.pairs import model_inputs
    from merganser.training.rehearsal import to_device

    module, device = context.backbone.module, context.backbone.device
    total: Tensor | None = None
    chosen = list(context.features[:examples])
    if not chosen:
        raise InputError(f"Task '{context.task}' has no examples.", "Give it some.")
    with eval_mode(module), torch.no_grad():
        for start in range(0, len(chosen), batch):
            inputs = to_device(context.backbone.collate(chosen[start : start + batch]), device)
            if context.backbone.kind == "matcher":
                # Texts or images: everything but the labels to choose from.
                read = {name: value for name, value in inputs.items() if name not in ("candidates", "labels")}
                rows = module.embed(**read)  # type: ignore[operator]
            else:
                output = module(**model_inputs(inputs), output_hidden_states=True)
                encoder = context.backbone.kind == "seq2seq"
                hidden = output.encoder_last_hidden_state if encoder else output.hidden_states[-1]
                tokens = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                rows = (hidden * tokens).sum(1) / tokens.sum(1)
            total = rows.float().sum(0) if total is None else total + rows.float().sum(0)
    assert total is not None
    return (total / len(chosen)).cpu()
