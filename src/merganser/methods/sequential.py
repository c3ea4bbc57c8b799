"""Sequential fine-tuning: keep training, do nothing against forgetting. The lower bound."""

from __future__ import annotations

from typing import Literal

from merganser.methods.base import Method, MethodOptions


class SequentialOptions(MethodOptions):
    """Plain fine-tuning on one task after another."""

    name: Literal["sequential"] = "sequential"


class Sequential(Method[SequentialOptions]):
    Options = SequentialOptions
    title = "Sequential fine-tuning"
    paper = "lower bound"
    idea = "Train on each new task in turn, without any measure against forgetting."
    supports_distributed = True
