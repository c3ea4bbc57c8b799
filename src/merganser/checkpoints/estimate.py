"""Estimate the time and memory of a planned merge."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from merganser.checkpoints.engine import Engine
from merganser.checkpoints.plan import Plan
from merganser.checkpoints.streaming import Files, Job
from merganser.checkpoints.tensor_writer import OutputFile
from merganser.files.safetensors_file import ITEM_SIZE, Tensor

_SAMPLE = 1 << 20
"""Elements of one tensor that are merged to estimate the time."""


def estimate_seconds(plan: Plan, kernels: ModuleType | None, threads: int) -> float:
    """Estimate the seconds of the merge from a sample of the largest tensor of each rule; writing is not timed."""
    largest: dict[str, Job] = {}
    total: dict[str, int] = {}
    for job in plan.jobs:
        key = job.rule.name if job.rule is not None else ""
        total[key] = total.get(key, 0) + job.target.size
        if key not in largest or job.target.size > largest[key].target.size:
            largest[key] = job
    files = Files()
    seconds = 0.0
    try:
        engine = Engine(files, kernels, True, lambda nbytes: None)
        with files.use(Path(os.devnull), os.O_WRONLY) as nothing:
            for key, job in largest.items():
                sample = _sample(job)
                engine.run(sample, OutputFile(nothing))
                started = time.perf_counter()
                engine.run(sample, OutputFile(nothing))
                seconds += (time.perf_counter() - started) * total[key] / max(sample.target.size, 1)
    finally:
        files.close()
    return seconds / max(1, min(threads, len(plan.jobs)))


def _sample(job: Job) -> Job:
    """Shorten a job to the first rows of its tensor."""
    shape = job.target.shape
    row = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if not shape or job.target.size <= _SAMPLE:
        return job
    cut = (max(1, _SAMPLE // max(row, 1)), *shape[1:])

    def shortened(tensor: Tensor) -> Tensor:
        return replace(tensor, shape=cut)

    return replace(
        job,
        target=shortened(job.target),
        sources=tuple(shortened(source) for source in job.sources),
        base=None if job.base is None else shortened(job.base),
    )


def largest_whole_tensor(plan: Plan) -> int:
    """Return the bytes needed by the largest tensor that its rule cannot merge in slices; 0 if all can be."""
    needs = [
        sum(tensor.size * (ITEM_SIZE[tensor.dtype] + 4) for tensor in job.inputs)
        for job in plan.jobs
        if job.rule is not None and job.rule.prepare is None
    ]
    return max(needs, default=0)
