"""Top-k trimming: keep exactly the k largest magnitudes of an update.

A :class:`TopKThreshold` is the smallest magnitude kept and, as several entries may have it, the index up to which those
are kept. :func:`top_k_thresholds` finds both without sorting and without holding the tensor: a sample brackets the
magnitude, and one pass counts the entries above the bracket and collects those inside. Where the bracket misses, the
threshold is found from two histograms of the magnitudes' bits: slower, with the same result.
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
"""Elements up to which a tensor's magnitudes are held in memory and partitioned."""

_SAMPLE_RUNS, _SAMPLE_RUN = 48, 4096
_MOST_RUNS = 16 * _SAMPLE_RUNS
_MARGIN = 0.01
_CANDIDATES = 0.10
_BIN_BITS = 12

MAX_COLLECTED = 1 << 23
"""Entries (of 12 bytes) that one pass may collect over all of its brackets, for a tensor of any size."""


@dataclass(frozen=True)
class TopKThreshold:
    """Keeps an entry of magnitude m at index j when ``m > magnitude``, or ``m == magnitude`` and ``j < index``."""

    magnitude: float
    index: int

    def kept(self, magnitudes: NDArray[Any], start: int) -> NDArray[np.bool_]:
        """Mark the kept entries of a slice that begins at element ``start``; NaN counts as the largest magnitude."""
        limit = magnitudes.dtype.type(self.magnitude)
        keep = ~(magnitudes <= limit)
        ties = min(max(self.index - start, 0), len(magnitudes))
        if ties > 0:
            keep[:ties] |= magnitudes[:ties] == limit
        return keep


ALL = TopKThreshold(-1.0, 0)
NONE = TopKThreshold(np.inf, 0)


def count_kept(density: float, size: int) -> int:
    """Return how many entries a density keeps: ``round(density * size)`` (mergekit and PEFT round down)."""
    return round(density * size)


def update_magnitudes(inputs: Inputs, model: int, start: int, stop: int) -> NDArray[Any]:
    """Compute ``|theta_i - theta_0|`` over a slice; ``|theta_i|`` without a base."""
    models, base = inputs.read(start, stop)
    delta = models[model] if base is None else models[model] - base
    return np.abs(delta)


def top_k_thresholds(inputs: Inputs, requests: Sequence[tuple[int, int]]) -> list[TopKThreshold]:
    """Find, for each ``(model, k)``, the threshold that keeps exactly the k largest magnitudes of the model's update.

    Entries of equal magnitude are kept in the order of their index. The update is the difference from the base, or the
    model itself where there is no base.

    Args:
        inputs: the tensor of every model.
        requests: index of a model, and k.
    """
    thresholds: dict[int, TopKThreshold] = {}
    searched: list[int] = []
    for index, (_, k) in enumerate(requests):
        if k >= inputs.size:
            thresholds[index] = ALL
        elif k <= 0:
            thresholds[index] = NONE
        else:
            searched.append(index)
    if searched and (inputs.size <= SMALL or inputs.work == np.float64):
        for index in searched:
            model, k = requests[index]
            thresholds[index] = _by_partition(update_magnitudes(inputs, model, 0, inputs.size), k)
    elif searched:
        scans = _sampled_brackets(inputs, [requests[index] for index in searched])
        limit = min(int(_CANDIDATES * inputs.size), MAX_COLLECTED // len(scans))
        _scan(inputs, scans, limit)
        for index, scan in zip(searched, scans, strict=True):
            thresholds[index] = _scanned_threshold(inputs, scan) or _by_histogram(inputs, scan.model, scan.k)
    return [thresholds[index] for index in range(len(requests))]


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
class _ThresholdSearch:
    """A search for a top-k threshold in one pass: entries above a bracket of magnitudes, and entries inside it."""

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


def _sampled_brackets(inputs: Inputs, requests: Sequence[tuple[int, int]]) -> list[_ThresholdSearch]:
    """Estimate, from runs spread over the tensor, a bracket of the k-th largest magnitude and its likeliest value."""
    margin = min(_MARGIN, 0.4 * MAX_COLLECTED / (len(requests) * inputs.size))
    # For the same probability of a hit, a narrower bracket needs quadratically more samples.
    runs = min(math.ceil(_SAMPLE_RUNS * (_MARGIN / margin) ** 2), _MOST_RUNS, inputs.size // _SAMPLE_RUN)
    stride = inputs.size // runs
    length = runs * _SAMPLE_RUN
    samples = {model: np.empty(length, np.float32) for model, _ in requests}
    for index in range(runs):
        models, base = inputs.read(index * stride, index * stride + _SAMPLE_RUN)
        for model, sample in samples.items():
            part = sample[index * _SAMPLE_RUN : (index + 1) * _SAMPLE_RUN]
            np.abs(models[model] if base is None else models[model] - base, out=part)
    brackets = []
    for model, k in requests:
        position = (1.0 - k / inputs.size) * (length - 1)
        positions = (position - margin * length, position, position + margin * length)
        counts = [length - int(min(max(index, 0), length - 1)) for index in positions]
        low, middle, high = _k_th_largest(samples[model], counts)
        brackets.append(_ThresholdSearch(model, k, low, middle, high))
    return brackets


def _scan(inputs: Inputs, scans: list[_ThresholdSearch], limit: int) -> None:
    """Fill the brackets in one pass over the tensor, per block, in order; none collects more than ``limit`` entries."""
    for scan in scans:
        # Pages of these arrays take memory only once they are written.
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
    """Return the number of elements read together: the inputs' own step, or a block."""
    return int(getattr(inputs, "step", BLOCK))


def _collect(scan: _ThresholdSearch, above: int, ties: int, values: Any, indices: Any) -> None:
    scan.above += above
    scan.at_middle.append(ties)
    end = scan.collected + len(values)
    if end <= len(scan.values):
        scan.values[scan.collected : end] = values
        scan.indices[scan.collected : end] = indices
    scan.collected = end


def _scanned_threshold(inputs: Inputs, scan: _ThresholdSearch) -> TopKThreshold | None:
    """Find the threshold in a scan; ``None`` if it is outside the bracket or too many entries were inside."""
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
    return TopKThreshold(*_collected_threshold(values, indices, need))


def _collected_threshold(values: NDArray[Any], indices: NDArray[np.int64], need: int) -> tuple[float, int]:
    """Return the magnitude and the index at which the ``need`` largest of the collected values end."""
    (magnitude,) = _k_th_largest(values, [need])
    ties = need - int(np.count_nonzero(values > magnitude))
    return magnitude, int(indices[values == magnitude][ties - 1]) + 1


def _k_th_largest(magnitudes: NDArray[np.float32], counts: Sequence[int]) -> list[float]:
    """Return the k-th largest of magnitudes for each k of ``counts``; NaN is larger than infinity.

    Differences of 16-bit weights have few distinct values, on which a partition is slow: one histogram of the bits,
    ordered as the magnitudes are, leaves a small part to it.
    """
    bits = magnitudes.view(np.uint32)
    lowest = bits.min()
    shift = max(0, int(bits.max() - lowest).bit_length() - _BIN_BITS)
    bins = (bits - lowest) >> np.uint32(shift)
    per_bin = np.bincount(bins)
    largest = []
    for k in counts:
        chosen, higher = _find_bin(per_bin, k)
        inside = bits[bins == chosen]
        rank = len(inside) - (k - higher)
        largest.append(float(np.partition(inside, rank)[rank : rank + 1].view(np.float32)[0]))
    return largest


def _index_of_tie(inputs: Inputs, model: int, magnitude: float, ties: int, per_block: list[int]) -> int:
    """Return the index behind the ``ties``-th entry of exactly this magnitude, from counts per block."""
    step = _step(inputs)
    for block, count in enumerate(per_block):
        if ties <= count:
            start = block * step
            magnitudes = update_magnitudes(inputs, model, start, min(start + step, inputs.size))
            return start + int(np.flatnonzero(magnitudes == magnitude)[ties - 1]) + 1
        ties -= count
    raise AssertionError("more ties than were counted")


def _by_histogram(inputs: Inputs, model: int, k: int) -> TopKThreshold:
    """Find the threshold from two histograms of the magnitudes' bits, in three passes.

    The bits of non-negative floats are ordered as the floats are. NaN is above infinity and is kept first.
    """
    upper = _histogram(inputs, model, None)
    high, higher = _find_bin(upper, k)
    lower = _histogram(inputs, model, high)
    low, more = _find_bin(lower, k - higher)
    ties = k - higher - more
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
    """Count the upper 16 bits of the magnitudes, or the lower 16 among those whose upper bits are ``upper``."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    for start in range(0, inputs.size, BLOCK):
        bits = update_magnitudes(inputs, model, start, min(start + BLOCK, inputs.size)).view(np.uint32)
        if upper is None:
            counts += np.bincount(bits >> np.uint32(16), minlength=1 << 16)
        else:
            chosen = bits[bits >> np.uint32(16) == upper]
            counts += np.bincount(chosen & np.uint32(0xFFFF), minlength=1 << 16)
    return counts


def _find_bin(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th entry from the top, and the number of entries in higher bins."""
    from_top = np.cumsum(counts[::-1])
    index = int(np.searchsorted(from_top, k))
    return len(counts) - 1 - index, int(from_top[index] - counts[len(counts) - 1 - index])
