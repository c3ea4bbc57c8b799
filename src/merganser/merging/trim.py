"""Top-k trimming: keep exactly the k largest magnitudes of an update.

That needs one number per tensor, the smallest magnitude kept, and, as several entries may have it, the index up to
which those are kept: a :class:`TopKThreshold`. :func:`top_k_thresholds` finds both without sorting and without holding
the tensor: a sample brackets the magnitude, one pass counts what lies above and collects what lies inside. Where the
bracket misses, two histograms of the bits of the magnitude decide: slower, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.merging.tensors import BLOCK, Inputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL = 4 * BLOCK
"""Up to this many elements the magnitudes of one tensor are held and partitioned."""

_SAMPLE_RUNS, _SAMPLE_RUN = 48, 4096
_MOST_RUNS = 16 * _SAMPLE_RUNS
_MARGIN = 0.01
_CANDIDATES = 0.10

MAX_COLLECTED = 1 << 23
"""Entries that one pass may collect over all of its brackets, of 12 bytes each, however large the tensor."""


@dataclass(frozen=True)
class TopKThreshold:
    """Keeps an entry of magnitude m at index j when ``m > magnitude``, or ``m == magnitude`` and ``j < index``."""

    magnitude: float
    index: int

    def kept(self, magnitudes: NDArray[Any], start: int) -> NDArray[np.bool_]:
        """Which entries of a slice that begins at element ``start`` are kept. NaN counts as the largest magnitude."""
        limit = magnitudes.dtype.type(self.magnitude)
        keep = ~(magnitudes <= limit)
        ties = min(max(self.index - start, 0), len(magnitudes))
        if ties > 0:
            keep[:ties] |= magnitudes[:ties] == limit
        return keep


ALL = TopKThreshold(-1.0, 0)
NONE = TopKThreshold(np.inf, 0)


def count_kept(density: float, size: int) -> int:
    """Entries that a density keeps: ``round(density * size)`` (mergekit and PEFT cut the fraction off)."""
    return round(density * size)


def update_magnitudes(inputs: Inputs, model: int, start: int, stop: int) -> NDArray[Any]:
    """``|theta_i - theta_0|`` over a slice."""
    models, base = inputs.read(start, stop)
    delta = models[model] if base is None else models[model] - base
    return np.abs(delta)


def top_k_thresholds(inputs: Inputs, wanted: Sequence[tuple[int, int]]) -> list[TopKThreshold]:
    """Find, for each ``(model, k)``, the threshold that keeps exactly the k largest magnitudes of the model's update.

    Entries of equal magnitude are kept in the order of their index. The update is the difference from the base, or the
    model itself where there is no base.
    """
    thresholds: dict[int, TopKThreshold] = {}
    searched: list[int] = []
    for index, (_, k) in enumerate(wanted):
        if k >= inputs.size:
            thresholds[index] = ALL
        elif k <= 0:
            thresholds[index] = NONE
        else:
            searched.append(index)
    if searched and (inputs.size <= SMALL or inputs.work == np.float64):
        for index in searched:
            model, k = wanted[index]
            thresholds[index] = _by_partition(update_magnitudes(inputs, model, 0, inputs.size), k)
    elif searched:
        scans = _sampled_brackets(inputs, [wanted[index] for index in searched])
        limit = min(int(_CANDIDATES * inputs.size), MAX_COLLECTED // len(scans))
        _scan(inputs, scans, limit)
        for index, scan in zip(searched, scans, strict=True):
            thresholds[index] = _from_scan(inputs, scan) or _by_histogram(inputs, scan.model, scan.k)
    return [thresholds[index] for index in range(len(wanted))]


def top_k_threshold(magnitudes: NDArray[Any], k: int) -> TopKThreshold:
    """Find the threshold that keeps exactly the k largest of magnitudes in memory, ties in the order of the index."""
    if k >= len(magnitudes):
        return ALL
    return NONE if k <= 0 else _by_partition(magnitudes, k)


def _by_partition(magnitudes: NDArray[Any], k: int) -> TopKThreshold:
    magnitude = np.partition(magnitudes, len(magnitudes) - k)[len(magnitudes) - k]
    if np.isnan(magnitude):
        return TopKThreshold(np.inf, 0)
    ties = k - int(np.count_nonzero(~(magnitudes <= magnitude)))
    index = int(np.flatnonzero(magnitudes == magnitude)[ties - 1]) + 1 if ties > 0 else 0
    return TopKThreshold(float(magnitude), index)


@dataclass
class _BracketScan:
    """One pass over an update: how much lies above a bracket of magnitudes, and what lies inside."""

    model: int
    k: int
    low: float
    middle: float
    high: float
    above: int = 0
    at_middle: list[int] = field(default_factory=list)
    values: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    indices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    collected: int = 0


def _sampled_brackets(inputs: Inputs, wanted: Sequence[tuple[int, int]]) -> list[_BracketScan]:
    """Magnitudes that probably enclose the k-th largest, and the likeliest one: from runs spread over the tensor."""
    margin = min(_MARGIN, 0.4 * MAX_COLLECTED / (len(wanted) * inputs.size))
    # A narrow bracket is hit as surely when it comes from more samples, in proportion to the square.
    runs = min(math.ceil(_SAMPLE_RUNS * (_MARGIN / margin) ** 2), _MOST_RUNS, inputs.size // _SAMPLE_RUN)
    stride = inputs.size // runs
    length = runs * _SAMPLE_RUN
    samples = {model: np.empty(length, np.float32) for model, _ in wanted}
    for index in range(runs):
        models, base = inputs.read(index * stride, index * stride + _SAMPLE_RUN)
        for model, sample in samples.items():
            part = sample[index * _SAMPLE_RUN : (index + 1) * _SAMPLE_RUN]
            np.abs(models[model] if base is None else models[model] - base, out=part)
    for sample in samples.values():
        sample.sort()
    brackets = []
    for model, k in wanted:
        position = (1.0 - k / inputs.size) * (length - 1)
        places = (position - margin * length, position, position + margin * length)
        low, middle, high = (float(samples[model][int(min(max(place, 0), length - 1))]) for place in places)
        brackets.append(_BracketScan(model, k, low, middle, high))
    return brackets


def _scan(inputs: Inputs, scans: list[_BracketScan], limit: int) -> None:
    """Fill the brackets in one pass over the tensor, per block, in order; none collects more than ``limit`` entries."""
    for scan in scans:
        # Only the part that is filled takes memory.
        scan.values, scan.indices = np.empty(limit, np.float32), np.empty(limit, np.int64)
    fast = getattr(inputs, "scan_slice", None)
    step = _step(inputs)
    for start in range(0, inputs.size, step):
        stop = min(start + step, inputs.size)
        if fast is not None:
            for scan, (above, ties, values, indices) in zip(scans, fast(start, stop, scans), strict=True):
                _collect(scan, above, ties, values, indices)
            continue
        models, base = inputs.read(start, stop)
        for scan in scans:
            magnitudes = np.abs(models[scan.model] if base is None else models[scan.model] - base)
            inside = np.flatnonzero((magnitudes >= scan.low) & (magnitudes <= scan.high))
            values = magnitudes[inside]
            other = values != scan.middle
            above = int(np.count_nonzero(~(magnitudes <= scan.high)))
            ties = len(values) - int(np.count_nonzero(other))
            _collect(scan, above, ties, values[other], inside[other] + start)


def _step(inputs: Inputs) -> int:
    """Elements read together: what the inputs prefer, or a block."""
    return int(getattr(inputs, "step", BLOCK))


def _collect(scan: _BracketScan, above: int, ties: int, values: Any, indices: Any) -> None:
    scan.above += above
    scan.at_middle.append(ties)
    end = scan.collected + len(values)
    if end <= len(scan.values):
        scan.values[scan.collected : end] = values
        scan.indices[scan.collected : end] = indices
    scan.collected = end


def _from_scan(inputs: Inputs, scan: _BracketScan) -> TopKThreshold | None:
    """The threshold, where the bracket holds it and little enough lay inside; ``None`` otherwise."""
    need = scan.k - scan.above
    middle = sum(scan.at_middle)
    if scan.collected > len(scan.values) or not 0 < need <= scan.collected + middle:
        return None
    values = scan.values[: scan.collected]
    higher = int(np.count_nonzero(values > scan.middle))
    if higher < need <= higher + middle:
        return TopKThreshold(scan.middle, _index_of_tie(inputs, scan.model, scan.middle, need - higher, scan.at_middle))
    indices = scan.indices[: scan.collected]
    if need > higher:
        need -= higher + middle
        keep = values < scan.middle
        values, indices = values[keep], indices[keep]
    return TopKThreshold(*_within(values, indices, need))


def _within(values: NDArray[Any], indices: NDArray[np.int64], need: int) -> tuple[float, int]:
    """Magnitude and index at which the ``need`` largest of the collected values end."""
    magnitude = np.partition(values, len(values) - need)[len(values) - need]
    ties = need - int(np.count_nonzero(values > magnitude))
    return float(magnitude), int(indices[values == magnitude][ties - 1]) + 1


def _index_of_tie(inputs: Inputs, model: int, magnitude: float, ties: int, per_block: list[int]) -> int:
    """Index just behind the ``ties``-th entry of exactly this magnitude, counted per block beforehand."""
    step = _step(inputs)
    for block, count in enumerate(per_block):
        if ties <= count:
            start = block * step
            magnitudes = update_magnitudes(inputs, model, start, min(start + step, inputs.size))
            return start + int(np.flatnonzero(magnitudes == magnitude)[ties - 1]) + 1
        ties -= count
    raise AssertionError("more ties than were counted")


def _by_histogram(inputs: Inputs, model: int, k: int) -> TopKThreshold:
    """Find the threshold from two histograms of the bits of the magnitude: three passes, whatever the values.

    The bits of non-negative floats order like the floats. NaN lies above infinity and is kept first.
    """
    upper = _histogram(inputs, model, None)
    high, taken = _bin_of(upper, k)
    lower = _histogram(inputs, model, high)
    low, more = _bin_of(lower, k - taken)
    ties = k - taken - more
    magnitude = float(np.array([high << 16 | low], dtype=np.uint32).view(np.float32)[0])
    if np.isnan(magnitude):
        return TopKThreshold(np.inf, 0)
    per_block = []
    step = _step(inputs)
    for start in range(0, inputs.size, step):
        magnitudes = update_magnitudes(inputs, model, start, min(start + step, inputs.size))
        per_block.append(int(np.count_nonzero(magnitudes == magnitude)))
    return TopKThreshold(magnitude, _index_of_tie(inputs, model, magnitude, ties, per_block))


def _histogram(inputs: Inputs, model: int, upper: int | None) -> NDArray[np.int64]:
    """Counts of the upper 16 bits of the magnitudes, or of the lower 16 among those whose upper bits are ``upper``."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for start in range(0, inputs.size, BLOCK):
        bits = update_magnitudes(inputs, model, start, min(start + BLOCK, inputs.size)).view(np.uint32)
        if upper is None:
            counts += np.bincount(bits >> np.uint32(16), minlength=1 << 16)
        else:
            chosen = bits[bits >> np.uint32(16) == upper]
            counts += np.bincount(chosen & np.uint32(0xFFFF), minlength=1 << 16)
    return counts


def _bin_of(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """The bin that holds the k-th entry from the top, and how many lie in higher bins."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    return len(counts) - 1 - place, int(from_top[place] - counts[len(counts) - 1 - place])
