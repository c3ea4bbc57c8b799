"""What a comparison of methods has found, as plain values: tables, figures and pages show nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from merganser.study.cell_record import CellRecord
from merganser.study.statistics import Estimate

Verdict = Literal["better", "worse", "cannot be told apart"]
"""What a difference to the reference allows to say."""

Axis = Literal["examples", "seconds", "bytes"]
"""What a method costs: examples trained and rehearsed, seconds of processor or GPU, bytes stored."""

AXES: tuple[Axis, ...] = ("examples", "seconds", "bytes")


@dataclass(frozen=True)
class Difference:
    """Overall performance against the reference's, paired by seed, order and test example.

    Attributes:
        estimate: of the mean difference, a fraction.
        p: two-sided, adjusted for the number of methods (Holm); ``None``: of one run.
        verdict: better or worse where the adjusted p value shows it.
        examples: test examples that were paired, of all tasks; 0: answers were not kept, so that only runs vary.
        orders: in how many it was compared.
        orders_ahead: in how many of them its mean is above the reference's.
    """

    estimate: Estimate
    p: float | None
    verdict: Verdict
    examples: int
    orders: int
    orders_ahead: int


@dataclass(frozen=True)
class MethodResult:
    """One method with its options on one stream.

    Attributes:
        label: its name, with the options that distinguish it from others of the name.
        cells: its complete runs.
        op, bwt, fwt: over seeds and orders; ``None``: undefined.
        difference: to the reference; ``None``: it is the reference, or no run could be paired.
        by_order, by_task: overall performance per order, and the final score per task.
        cost: mean per run; ``None``: not known.
        more: axis -> how many times the reference's cost, where it is more.
    """

    label: str
    cells: tuple[CellRecord, ...]
    op: Estimate
    bwt: Estimate | None
    fwt: Estimate | None
    difference: Difference | None = None
    by_order: Mapping[str, Estimate] = field(default_factory=dict)
    by_task: Mapping[str, Estimate] = field(default_factory=dict)
    cost: Mapping[Axis, float | None] = field(default_factory=dict)
    more: Mapping[Axis, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamResult:
    """The methods on one stream, best first.

    Attributes:
        stream: its name.
        methods: by overall performance.
        reference: label of the method that the others are compared with.
        confidence: of intervals and verdicts.
        tasks, orders, seeds: of the runs.
        seconds: what the seconds are: of the GPU, of the processor, or of the clock.
        left_out: cells that take no part, with the reason.
        notes: sentences that a reader of the numbers has to know.
    """

    stream: str
    methods: tuple[MethodResult, ...]
    reference: str
    confidence: float
    tasks: tuple[str, ...]
    orders: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: str
    left_out: tuple[tuple[CellRecord, str], ...]
    notes: tuple[str, ...]

    def method(self, label: str) -> MethodResult:
        """Return a method by its label."""
        return next(method for method in self.methods if method.label == label)
