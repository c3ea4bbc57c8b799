"""A module with what ``train_task`` needs of a backbone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from merganser.training.rehearsal import Collator


@dataclass
class Model:
    """Any module, its collator, and fp32."""

    module: nn.Module
    collate: Collator
    precision: str = "fp32"
