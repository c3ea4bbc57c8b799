"""Sentences that a reader of a study's numbers has to know."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.study.cell_record import CellRecord, describe
from merganser.study.results import MethodResult, StreamResult


def notes_on(
    methods: Sequence[MethodResult], cells: Sequence[CellRecord], left_out: Sequence[tuple[CellRecord, str]]
) -> list[str]:
    notes = []
    stopped = [(cell, why) for cell, why in left_out if cell.stopped_by is not None]
    if stopped:
        count = "1 cell was" if len(stopped) == 1 else f"{len(stopped)} cells were"
        notes.append(f"{count} stopped by a rule; not compared: {_list(stopped)}.")
        ended = [(cell.method, cell.options) for cell, _ in stopped]
        if some := [method.label for method in methods if (method.cells[0].method, method.cells[0].options) in ended]:
            notes.append(f"Of {', '.join(some)}, only the runs that were not stopped are compared, which favours it.")
    if others := [pair for pair in left_out if pair[0].stopped_by is None]:
        notes.append(f"Not compared: {_list(others)}.")
    counts = {method.label: len(method.cells) for method in methods}
    if len(set(counts.values())) > 1:
        fewer = [f"{label} {count}" for label, count in counts.items() if count < max(counts.values())]
        notes.append(f"Not every method has {max(counts.values())} runs: {', '.join(fewer)}.")
    if any(not cell.examples for cell in cells):
        notes.append(
            "Answers to the test examples were not kept in every run, so that intervals of differences do not cover "
            "the test examples there."
        )
    machines = {tuple(map(cell.hardware.get, ("processor", "device", "gpu"))) for cell in cells}
    if len(machines) > 1:
        notes.append(f"The cells ran on {len(machines)} kinds of machines, so that their seconds are not comparable.")
    models = {cell.configuration.get("resolved", {}).get("model_fingerprint") for cell in cells}
    if len(models) > 1:
        notes.append(f"The cells began with {len(models)} different pretrained models.")
    versions = {cell.versions.get("merganser") for cell in cells}
    if len(versions) > 1:
        notes.append(f"The cells were run by {len(versions)} versions of Merganser.")
    return notes


def _list(cells: Sequence[tuple[CellRecord, str]], most: int = 3) -> str:
    shown = "; ".join(f"{describe(cell)} ({why})" for cell, why in cells[:most])
    return shown if len(cells) <= most else f"{shown}; and {len(cells) - most} more"


def detectable_sentence(result: StreamResult) -> str:
    """Say which difference to the reference the study would have detected."""
    sizes = [
        method.difference.estimate.detectable
        for method in result.methods
        if method.difference is not None and method.difference.estimate.detectable is not None
    ]
    if not sizes:
        return "No difference could be detected: it takes two runs of each method at least."
    low, high = f"{100 * min(sizes):.1f}", f"{100 * max(sizes):.1f}"
    points = f"{low} points" if low == high else f"{low} to {high} points, depending on the method,"
    return (
        f"With these runs and test examples, a true difference of {points} would be told from none four times out of "
        "five; smaller ones are missed more often."
    )
