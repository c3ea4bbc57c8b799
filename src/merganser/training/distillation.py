"""The distillation loss that LwF and TRM share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LOWEST_LOGIT = -1e4
"""Stands for minus infinity: zero after the softmax, and unlike infinity it has a gradient."""


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Compute :math:`T^2 \mathrm{KL}(\mathrm{softmax}(teacher / T) \,\|\, \mathrm{softmax}(student / T))`.

    Args:
        student, teacher: logits (rows x choices); missing choices may be minus infinity in both.
        temperature: T; the factor :math:`T^2` keeps the size of gradients independent of it.

    Returns:
        The mean over rows, in nats; 0 without rows or choices.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).
    """
    if teacher.numel() == 0:
        return student.sum() * 0.0
    exact = torch.promote_types(student.dtype, torch.float32)
    teacher_log = functional.log_softmax(teacher.to(exact).clamp(min=LOWEST_LOGIT) / temperature, -1)
    student_log = functional.log_softmax(student.to(exact).clamp(min=LOWEST_LOGIT) / temperature, -1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
