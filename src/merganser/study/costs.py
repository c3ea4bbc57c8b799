"""What methods cost beside each other: examples, seconds and bytes, and which of them spend more than a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from merganser.study.cell_record import CellRecord
from merganser.study.results import AXES, Axis, MethodResult, StreamResult

TOLERANCE: Mapping[Axis, float] = {"examples": 1.01, "seconds": 1.05, "bytes": 1.01}
"""How much more than the reference's cost counts as more: times vary by themselves."""


def kind_of_seconds(cells: Sequence[CellRecord]) -> str:
    """Return what seconds all cells have: of the GPU, of the processor, or of the clock."""
    if all(cell.cost.gpu_seconds is not None for cell in cells):
        return "GPU seconds"
    if all(cell.cost.processor_seconds is not None for cell in cells):
        return "processor seconds"
    return "seconds of training"


def seconds_of(cell: CellRecord, kind: str) -> float | None:
    if kind == "GPU seconds":
        return cell.cost.gpu_seconds
    return cell.cost.processor_seconds if kind == "processor seconds" else cell.cost.training_seconds


def with_cost(method: MethodResult, reference: MethodResult) -> MethodResult:
    more: dict[Axis, float] = {}
    for axis in AXES:
        cost, allowed = method.cost.get(axis), reference.cost.get(axis)
        if cost is not None and allowed is not None and cost > TOLERANCE[axis] * allowed:
            more[axis] = cost / allowed if allowed else math.inf
    return replace(method, more=more)


@dataclass(frozen=True)
class BudgetView:
    """The methods of a stream that spend at most what a reference does, best first, and those that spend more.

    Attributes:
        axis: what is spent.
        budget: of the reference.
        within, beyond: labels.
    """

    axis: Axis
    budget: float
    within: tuple[str, ...]
    beyond: tuple[str, ...]


def budget_views(result: StreamResult) -> list[BudgetView]:
    """Divide the methods by what the reference spends, for each kind of cost that is known of all."""
    views = []
    for axis in AXES:
        costs = [method.cost.get(axis) for method in result.methods]
        if not result.reference or any(cost is None for cost in costs):
            continue
        budget = result.method(result.reference).cost[axis] or 0.0
        within = tuple(method.label for method in result.methods if axis not in method.more)
        beyond = tuple(method.label for method in result.methods if axis in method.more)
        views.append(BudgetView(axis, budget, within, beyond))
    return views
