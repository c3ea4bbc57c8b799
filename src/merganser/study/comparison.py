"""The methods of a study compared: means with intervals, paired differences to a reference, and what each one cost."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from merganser.errors import InputError, nearest
from merganser.metrics.paired import holm
from merganser.settings import CONFIDENCE
from merganser.study.cell_record import CellRecord, ExampleScores, with_one_name_per_order
from merganser.study.costs import kind_of_seconds, seconds_of, with_cost
from merganser.study.grids import short_keys
from merganser.study.notes import notes_on
from merganser.study.order_names import natural, split_order
from merganser.study.results import Difference, MethodResult, StreamResult
from merganser.study.statistics import Block, Estimate, Sample, estimate, mean_of

Pair = tuple[CellRecord, CellRecord]
"""Runs of two methods in one order with one seed."""

REFERENCES = ("replay", "sequential")
"""Methods that are the reference where none was chosen, if the study has them."""


def compare(
    records: Sequence[CellRecord], reference: str | None = None, confidence: float = CONFIDENCE
) -> list[StreamResult]:
    """Compare the methods of a study, stream by stream.

    Trials of a tuning take no part: they were scored on development data. Equal orders count as one, whatever they are
    called.

    Args:
        records: its cells.
        reference: label or name of the method that the others are compared with; default, also for streams without
            it: ``replay``, else ``sequential``, else the best one.
        confidence: of intervals and verdicts, in (0, 1).

    Raises:
        InputError: there are no results, there is no such reference, or cells of one stream were scored on different
            test examples.
    """
    results = with_one_name_per_order([record for record in records if record.tuning is None])
    if not results:
        raise InputError("There are no results of cells to compare.", "Run the study first: merganser study STUDY.yaml")
    streams: dict[str, list[CellRecord]] = {}
    for record in results:
        streams.setdefault(record.stream, []).append(record)
    if reference is not None:
        labels = {label for of_stream in streams.values() for label in method_labels(of_stream).values()}
        if reference not in labels | {record.method for record in results}:
            hint = nearest(reference, labels) or ""
            remedy = f"{hint} Methods: {', '.join(sorted(labels))}."
            raise InputError(f"There is no method '{reference}' in the study.", remedy.strip())
    return [_compare_stream(stream, of_stream, reference, confidence) for stream, of_stream in streams.items()]


def method_labels(records: Sequence[CellRecord]) -> dict[str, str]:
    """Return cell name -> label of its method: its name, with options where several methods have the name."""
    variants: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        known = variants.setdefault(record.method, [])
        if record.options not in known:
            known.append(record.options)
    labels = {}
    for record in records:
        known = variants[record.method]
        labels[record.name] = record.method
        if len(known) > 1:
            keys = short_keys({tuple(key.split(".")) for options in known for key in options})
            varied = [
                key for key in record.options if any(options.get(key) != record.options[key] for options in known)
            ]
            text = ", ".join(f"{keys[tuple(key.split('.'))]}={record.options[key]}" for key in varied) or "defaults"
            labels[record.name] = f"{record.method} ({text})"
    return labels


def _compare_stream(
    stream: str, records: Sequence[CellRecord], reference: str | None, confidence: float
) -> StreamResult:
    complete, left_out = _complete(records)
    _check_test_sets(complete)
    labels = method_labels(records)
    cells: dict[str, list[CellRecord]] = {}
    for record in sorted(complete, key=lambda record: (natural(record.order), record.seed)):
        cells.setdefault(labels[record.name], []).append(record)
    kind = kind_of_seconds(complete)
    methods = [_summarise(label, of, kind, confidence) for label, of in cells.items()]
    methods.sort(key=lambda method: -method.op.mean)
    chosen = _reference(methods, reference) or _reference(methods, None)
    if chosen is not None:
        methods = _with_differences(methods, chosen, confidence)
        methods = [with_cost(method, chosen) for method in methods]
    return StreamResult(
        stream=stream,
        methods=tuple(methods),
        reference="" if chosen is None else chosen.label,
        confidence=confidence,
        tasks=tuple(complete[0].tasks) if complete else (),
        orders=tuple(dict.fromkeys(sorted((record.order for record in complete), key=natural))),
        seeds=tuple(dict.fromkeys(sorted(record.seed for record in complete))),
        seconds=kind,
        left_out=tuple(left_out),
        notes=tuple(notes_on(methods, complete, left_out)),
    )


def _complete(records: Sequence[CellRecord]) -> tuple[list[CellRecord], list[tuple[CellRecord, str]]]:
    """Divide cells into those that can be compared, and the others with the reason."""
    sets = Counter(frozenset(record.tasks) for record in records if record.stopped_by is None)
    usual = sets.most_common(1)[0][0] if sets else frozenset()
    complete: list[CellRecord] = []
    left_out: list[tuple[CellRecord, str]] = []
    for record in records:
        if record.stopped_by is not None:
            left_out.append((record, f"stopped by {record.stopped_by} after {len(record.tasks)} tasks"))
        elif frozenset(record.tasks) != usual:
            left_out.append((record, f"learned other tasks than the {len(usual)} of the most cells"))
        elif record.op is None:
            left_out.append((record, "overall performance is undefined: a task has no score in the last row"))
        else:
            complete.append(record)
    return complete, left_out


def _check_test_sets(records: Sequence[CellRecord]) -> None:
    first: dict[tuple[str, str], CellRecord] = {}
    for record in records:
        for task, kept in record.examples.items():
            other = first.setdefault((task, _partition(record)), record)
            if other.examples[task].test_sha256 != kept.test_sha256:
                raise InputError(
                    f"'{other.name}' and '{record.name}' were scored on different test examples of '{task}'.",
                    f"Give streams of different data different names (both are cells of '{record.stream}').",
                )


def _partition(record: CellRecord) -> str:
    return json.dumps(split_order(record.configuration.get("stream") or {}))


def _reference(methods: Sequence[MethodResult], name: str | None) -> MethodResult | None:
    """Return the reference: the one of that label, or the best one of that name."""
    for wanted in REFERENCES if name is None else (name,):
        for key in ("label", "name"):
            for method in methods:
                if (method.label if key == "label" else method.cells[0].method) == wanted:
                    return method
    return methods[0] if methods and name is None else None


def _summarise(label: str, cells: Sequence[CellRecord], kind: str, confidence: float) -> MethodResult:
    op = over_runs(cells, "OP", confidence)
    assert op is not None  # cells without it were left out
    orders = dict.fromkeys(cell.order for cell in cells)
    by_order = {order: over_runs([c for c in cells if c.order == order], "OP", confidence) for order in orders}
    runs = _runs(cells)
    by_task = {
        task: estimate(_sample(runs, [run.final[task].value for run in runs]), confidence)
        for task in sorted(cells[0].tasks)
    }
    return MethodResult(
        label=label,
        cells=tuple(cells),
        op=op,
        bwt=over_runs(cells, "BWT", confidence),
        fwt=over_runs(cells, "FWT (single-task)", confidence),
        by_order={order: of_order for order, of_order in by_order.items() if of_order is not None},
        by_task=by_task,
        cost={
            "examples": mean_of([float(c.cost.examples_trained + c.cost.examples_rehearsed) for c in cells]),
            "seconds": mean_of([seconds_of(cell, kind) for cell in cells]),
            "bytes": mean_of([float(cell.bytes_stored) for cell in cells]),
        },
    )


def over_runs(cells: Sequence[CellRecord], metric: str, confidence: float = CONFIDENCE) -> Estimate | None:
    """Estimate a metric over the runs of a method; ``None`` if it is undefined for one of them, or there are none."""
    runs = _runs(cells)
    values = [value for run in runs if (value := run.value(metric)) is not None]
    return estimate(_sample(runs, values), confidence) if values and len(values) == len(runs) else None


def _runs(cells: Sequence[CellRecord]) -> list[CellRecord]:
    """Return a cell of each run: joint training has one run for all orders."""
    return list({_run(cell): cell for cell in cells}.values())


def _run(cell: CellRecord) -> tuple[int, str]:
    return cell.seed, cell.run


def _sample(
    cells: Sequence[CellRecord], values: Sequence[float], blocks: Sequence[Block] = (), one_run: bool = False
) -> Sample:
    orders, seeds = [cell.order for cell in cells], [cell.seed for cell in cells]
    return Sample(np.asarray(values, dtype=np.float64), orders, seeds, blocks, one_run)


# Differences ---------------------------------------------------------------------------------------------------------


def _with_differences(
    methods: Sequence[MethodResult], reference: MethodResult, confidence: float
) -> list[MethodResult]:
    others = [method for method in methods if method is not reference]
    paired = {method.label: pair(method.cells, reference.cells) for method in others}
    samples = {label: _difference_sample(pairs) for label, pairs in paired.items() if pairs}
    tested = [label for label, sample in samples.items() if sample.shows_spread]
    estimates = {label: estimate(sample, confidence, max(1, len(tested))) for label, sample in samples.items()}
    adjusted = dict(zip(tested, holm([estimates[label].p or 0.0 for label in tested]), strict=True))
    differences = {
        label: _difference(sample, estimates[label], adjusted.get(label), confidence)
        for label, sample in samples.items()
    }
    return [
        method if method.label not in differences else replace(method, difference=differences[method.label])
        for method in methods
    ]


def pair(cells: Sequence[CellRecord], reference: Sequence[CellRecord]) -> list[Pair]:
    """Pair the runs of two methods by order and seed."""
    others = {(cell.order, cell.seed): cell for cell in reference}
    return [(cell, others[cell.order, cell.seed]) for cell in cells if (cell.order, cell.seed) in others]


def _difference_sample(pairs: Sequence[Pair]) -> Sample:
    tasks = pairs[0][0].tasks
    blocks = []
    for task in tasks:
        # Where classes are split, a task of another order has other examples. All orders share the texts of the data
        # set, whose effects are taken to be the same in all: the factor sqrt(orders) makes up for drawing them
        # apart in each order.
        kept: dict[str, list[tuple[ExampleScores, ExampleScores]]] = {}
        for a, b in ((a.examples.get(task), b.examples.get(task)) for a, b in pairs):
            if a is not None and b is not None and a.test_sha256 == b.test_sha256:
                kept.setdefault(a.test_sha256, []).append((a, b))
        for same in kept.values():
            scores = np.array([np.subtract(a.scores, b.scores) for a, b in same])
            blocks.append(Block(scores, len(same) / len(pairs) / len(tasks) * math.sqrt(len(kept))))
    return paired_sample(pairs, [(a.op or 0.0) - (b.op or 0.0) for a, b in pairs], blocks)


def paired_sample(pairs: Sequence[Pair], differences: Sequence[float], blocks: Sequence[Block] = ()) -> Sample:
    """Return differences of pairs of runs as a sample."""
    one_run = any(len({_run(pair[side]) for pair in pairs}) == 1 for side in (0, 1))
    return _sample([a for a, _ in pairs], differences, blocks, one_run)


def _difference(sample: Sample, of: Estimate, p: float | None, confidence: float) -> Difference:
    by_order: dict[Any, list[float]] = {}
    for order, value in zip(sample.orders, sample.values, strict=True):
        by_order.setdefault(order, []).append(float(value))
    shown = p is not None and p <= 1.0 - confidence + 1e-12
    return Difference(
        estimate=of,
        p=p,
        verdict="cannot be told apart" if not shown else "better" if of.mean > 0 else "worse",
        examples=round(sum(block.scores.size for block in sample.blocks) / sample.values.size),
        orders=len(by_order),
        orders_ahead=sum(math.fsum(values) > 0 for values in by_order.values()),
    )
