"""The plan of a merge: what happens to every tensor, decided before anything is written."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from merganser.checkpoints.engine import Engine
from merganser.checkpoints.recipe import Recipe, positions, refuse_unmatched
from merganser.checkpoints.source import (
    INDEX,
    SINGLE,
    Checkpoint,
    LocatedRecipe,
    Source,
    locate_recipe,
    open_checkpoint,
)
from merganser.checkpoints.streaming import Files, Job
from merganser.checkpoints.vocabulary import check_kind, check_vocabularies
from merganser.errors import InputError
from merganser.files.safetensors_file import FLOATING, ITEM_SIZE, Tensor, header_bytes
from merganser.merging.rule import Rule

_SAMPLE = 1 << 20
"""Elements of one tensor that are merged to estimate the time."""


@dataclass
class Plan:
    """The inputs, computations and outputs of a merge.

    Attributes:
        located: the recipe and where its inputs are.
        reference: the base, or the first model without one; the result has its shards, types, config and tokenizer.
        jobs: one per tensor, its target naming the shard by file name.
        shards: shard name -> its tensors ``(name, dtype, shape)`` in order.
        buffers: tensors that are not floating-point, copied from the reference.
        kept: tensors that the recipe copies from the reference.
        only_reference: with ``common_only``: tensors that not all models have in equal shape, kept from the reference.
        left_out: with ``common_only``: tensors that the reference lacks.
    """

    located: LocatedRecipe
    reference: Checkpoint
    jobs: list[Job]
    shards: dict[str, list[tuple[str, str, tuple[int, ...]]]]
    buffers: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    only_reference: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The recipe, with hub ids at the commits they resolved to."""
        return self.located.recipe

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of every shard written."""
        return {"format": "pt", **self.reference.metadata}

    @property
    def output_bytes(self) -> int:
        """Bytes of all tensors written."""
        return sum(job.target.nbytes for job in self.jobs)

    @property
    def input_bytes(self) -> int:
        """Bytes of all tensors read, each once."""
        return sum(tensor.nbytes for job in self.jobs for tensor in job.inputs)

    @property
    def file_bytes(self) -> int:
        """Bytes of the files written: tensors and headers."""
        heads = [header_bytes(tensors, self.metadata)[0] for tensors in self.shards.values()]
        return self.output_bytes + sum(len(head) for head in heads)

    @property
    def rules(self) -> dict[str, int]:
        """Number of tensors per rule."""
        counts: dict[str, int] = {}
        for job in self.jobs:
            if job.rule is not None:
                counts[job.rule.name] = counts.get(job.rule.name, 0) + 1
        return counts


def make_plan(recipe: Recipe | LocatedRecipe) -> Plan:
    """Open every checkpoint and decide what happens to every tensor.

    Raises:
        InputError: a checkpoint that cannot be read; names, shapes or vocabularies that differ; a rule without its
            base; types that cannot be merged; an override that matches nothing; nothing to merge; an option that only
            adapters take.
    """
    _refuse_adapter_options(recipe.recipe if isinstance(recipe, LocatedRecipe) else recipe)
    located = locate_recipe(recipe)
    recipe = located.recipe
    models = [_open(source) for source in located.models]
    fishers = [_open(source) for source in located.fishers]
    base = None if located.base is None else _open(located.base)
    reference = base or models[0]
    checkpoints = [*models, *([] if base is None else [base])]
    only_reference, left_out = _differences(reference, checkpoints, recipe.common_only)
    plan = Plan(located, reference, [], {}, only_reference=only_reference, left_out=left_out)
    plan.shards = {shard: [] for shard in map(_result_name(reference), reference.shards)}
    reference_only = set(only_reference)
    layer_positions = positions(list(reference.tensors))
    for name, tensor in reference.tensors.items():
        rule, arguments = recipe.resolve(layer_positions[name])
        job = _job(tensor, rule, arguments, name in reference_only, plan, models, fishers, base)
        plan.shards[job.target.path.name].append((name, job.target.dtype, tensor.shape))
        plan.jobs.append(job)
    refuse_unmatched(recipe, list(reference.tensors))
    plan.shards = {shard: tensors for shard, tensors in plan.shards.items() if tensors}
    if not plan.rules and not plan.kept:
        raise InputError(
            f"There is nothing to merge: the models have no floating-point tensor in common with {reference.label}.",
            "Check the models.",
        )
    _refuse_other_kinds(plan, checkpoints)
    return plan


def _refuse_other_kinds(plan: Plan, checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse models of equal shapes but of another architecture or vocabulary."""
    size = plan.reference.config.get("vocab_size")
    by_token = any(job.rule is not None and (size is None or size in job.target.shape) for job in plan.jobs)
    all_checkpoints = [plan.reference, *(checkpoint for checkpoint in checkpoints if checkpoint is not plan.reference)]
    if not plan.recipe.common_only:
        for first, second in combinations(all_checkpoints, 2):
            check_kind(first, second)
    if by_token and not plan.recipe.ignore_vocabulary:
        check_vocabularies(all_checkpoints)


def _open(source: Source) -> Checkpoint:
    """Open a checkpoint; refuse a folder that holds two sets of weights."""
    checkpoint = open_checkpoint(source)
    both = (checkpoint.folder / INDEX).is_file() and (checkpoint.folder / SINGLE).is_file()
    if both and SINGLE not in checkpoint.shards and not source.path.is_file():
        raise InputError(
            f"{source.name} has {INDEX} and {SINGLE}, which the index does not name: loaders differ in their choice.",
            "Remove the one that is out of date, or name the file.",
        )
    return checkpoint


def _refuse_adapter_options(recipe: Recipe) -> None:
    """Refuse options that apply only to merges of adapters."""
    options = {
        "rank": recipe.rank is not None,
        "space": recipe.space != "update",
        "allow_different_bases": recipe.allow_different_bases,
    }
    for key, present in options.items():
        if present:
            raise InputError(f"The option {key} (--{key.replace('_', '-')}) applies only to adapters.", "Omit it.")


def _result_name(reference: Checkpoint) -> Any:
    """Return a function from the reference's shard names to the result's; a single file is named as loaders expect."""
    if len(reference.shards) == 1 and not (reference.folder / INDEX).is_file():
        return lambda shard: SINGLE
    return lambda shard: shard


def _job(
    tensor: Tensor,
    rule: Rule | None,
    arguments: dict[str, Any],
    reference_only: bool,
    plan: Plan,
    models: Sequence[Checkpoint],
    fishers: Sequence[Checkpoint],
    base: Checkpoint | None,
) -> Job:
    name = tensor.name
    if rule is None and base is None:
        raise InputError(f"An override copies {name} from the base, but there is no base.", "Name it: --base.")
    shard = Path(_result_name(plan.reference)(tensor.path.name))
    keep = Job(Tensor(name, tensor.dtype, tensor.shape, shard, 0), (tensor,), (plan.reference.label,))
    if tensor.dtype not in FLOATING:
        _refuse_quantised(tensor, plan.reference.label)
        for model in [] if reference_only else models:
            if model.tensors[name].dtype in FLOATING:
                raise _dtype_mismatch(tensor, plan.reference, model)
        plan.buffers.append(name)
        return keep
    target = Tensor(name, plan.recipe.storage_dtype or tensor.dtype, tensor.shape, shard, 0)
    if reference_only or rule is None:
        if not reference_only:
            plan.kept.append(name)
        return replace(keep, target=target)
    if rule.base == "required" and base is None:
        raise InputError(f"The rule {rule.name} needs a base.", "Give the model that all of them started from: --base.")
    sources = [(model, model.tensors[name]) for model in models]
    if rule.extra:
        sources += [(extra, _extra(extra, tensor, rule.extra)) for extra in fishers]
    for checkpoint, source in sources:
        if source.dtype not in FLOATING:
            raise _dtype_mismatch(tensor, plan.reference, checkpoint)
    uses_base = rule.base == "required"
    owners = tuple(checkpoint.label for checkpoint, _ in sources)
    return Job(
        target,
        tuple(source for _, source in sources),
        (*owners, base.label) if uses_base and base is not None else owners,
        base.tensors[name] if uses_base and base is not None else None,
        rule,
        arguments,
    )


def _dtype_mismatch(tensor: Tensor, reference: Checkpoint, other: Checkpoint) -> InputError:
    theirs = other.tensors[tensor.name].dtype
    return InputError(
        f"Tensor {tensor.name} is {theirs} in {other.label}, {tensor.dtype} in {reference.label}.",
        "Rules merge floating-point tensors: convert that model first.",
    )


def _refuse_quantised(tensor: Tensor, label: str) -> None:
    if tensor.dtype.startswith("F8") or tensor.dtype == "C64":
        raise InputError(
            f"Tensor {tensor.name} of {label} is {tensor.dtype}, which cannot be merged.",
            "Convert the model to bfloat16 or float32 first.",
        )


def _extra(extra: Checkpoint, tensor: Tensor, what: str) -> Tensor:
    second = extra.tensors.get(tensor.name)
    if second is None or second.shape != tensor.shape:
        shape = "missing" if second is None else str(list(second.shape))
        raise InputError(
            f"The {what} file {extra.label} has {tensor.name} {shape}, the models {list(tensor.shape)}.",
            f"A {what} file has the names and shapes of its model.",
        )
    return second


def _differences(
    reference: Checkpoint, checkpoints: Sequence[Checkpoint], common_only: bool
) -> tuple[list[str], list[str]]:
    """List tensors that not all models have in the reference's shape, and tensors that the reference lacks.

    Raises:
        InputError: there are such tensors, and ``common_only`` is not set.
    """
    only: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for checkpoint in checkpoints:
        for name, tensor in reference.tensors.items():
            other = checkpoint.tensors.get(name)
            if other is None:
                only.setdefault(name, f"{name} is missing in {checkpoint.label}")
            elif other.shape != tensor.shape:
                only.setdefault(
                    name,
                    f"{name} is {list(tensor.shape)} in {reference.label}, {list(other.shape)} in {checkpoint.label}",
                )
        for name in checkpoint.tensors:
            if name not in reference.tensors:
                lacking.setdefault(name, f"{name} is in {checkpoint.label}, not in {reference.label}")
    differences = [*only.values(), *lacking.values()]
    if differences and not common_only:
        listed = "; ".join(differences[:6]) + (f"; and {len(differences) - 6} more" if len(differences) > 6 else "")
        raise InputError(
            f"The models differ: {listed}.",
            "Models of one architecture and vocabulary can be merged; to merge what they have in common and keep the "
            "rest of the first (or the base), use --common-only.",
        )
    if len(only) == len(reference.tensors):
        raise InputError(f"{reference.label} has no tensor in common with the others.", "Check the models.")
    return sorted(only), sorted(lacking)


def check_room(needed: int, folder: Path) -> None:
    """Refuse to write more bytes than the disk of a folder has free.

    Raises:
        InputError: there is too little space; gives the bytes needed and free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The result needs {needed:,} bytes; {folder} has {free:,} free.", "Make room, or choose another disk."
        )


def estimate_seconds(plan: Plan, kernels: ModuleType | None, threads: int) -> float:
    """Estimate the seconds of the merge by merging a sample of the largest tensor of each rule."""
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
                engine.run(sample, nothing)
                started = time.perf_counter()
                engine.run(sample, nothing)
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
