"""The plan of a merge: what happens to every tensor, decided before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from merganser.checkpoints.adapters.with_adapter import open_model
from merganser.checkpoints.recipe import Recipe, positions, refuse_unmatched
from merganser.checkpoints.source import (
    INDEX,
    SINGLE,
    Checkpoint,
    LocatedRecipe,
    Source,
    locate_recipe,
)
from merganser.checkpoints.streaming import Job
from merganser.checkpoints.vocabularies.common_rows import common_rows, cut, number_of_rows, rest
from merganser.checkpoints.vocabularies.tied_names import EMBEDDING, vocabulary_names
from merganser.checkpoints.vocabularies.tying import Groups, is_untied, share_fisher, share_tied
from merganser.checkpoints.vocabularies.vocabulary import (
    check_kinds,
    check_tokenizer_size,
    check_vocabularies,
    read_vocabulary,
)
from merganser.errors import InputError
from merganser.files.safetensors_file import FLOATING, Tensor, header_bytes
from merganser.merging.rule import Rule


@dataclass
class Plan:
    """The inputs, computations and outputs of a merge.

    Attributes:
        located: the recipe and where its inputs are.
        reference: the base, or the first model without one; the result has its shards, types, config and tokenizer.
        jobs: one per tensor, or one for its common rows and one for the others; the target names the shard by file
            name, and its offset is that within the tensor.
        models: the models that are merged.
        tokenizer: whose tokenizer the result has, and the rows that the models do not have in common.
        shards: shard name -> its tensors ``(name, dtype, shape)`` in order.
        buffers: tensors that are not floating-point, copied from the reference.
        kept: tensors that the recipe copies from the reference.
        only_reference: with ``common_only``: tensors that not all models have in equal shape, kept from the reference.
        left_out: with ``common_only``: tensors that the reference lacks.
        rows: with ``common_rows``: vocabulary matrix -> its number of common rows.
        untied: whether the result has an output layer of its own although the reference's is tied.
        allowed: settings that differ between the models and may, each with both values.
    """

    located: LocatedRecipe
    reference: Checkpoint
    models: tuple[Checkpoint, ...]
    tokenizer: Checkpoint
    jobs: list[Job] = field(default_factory=list)
    shards: dict[str, list[tuple[str, str, tuple[int, ...]]]] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    only_reference: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    untied: bool = False
    allowed: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The recipe, with hub ids at the commits they resolved to."""
        return self.located.recipe

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of every shard written."""
        return {"format": "pt", **self.reference.metadata}

    @property
    def notes(self) -> list[str]:
        """Describe what is done to weights that the models have in part or share."""
        described = []
        for name, rows in self.rows.items():
            left = number_of_rows(self.tokenizer.tensors[name]) - rows
            others = (
                f"the other {left} from {self.tokenizer.label}" if left else "those that not all models have omitted"
            )
            described.append(f"{name}: the first {rows} rows merged, {others}")
        described += [f"{difference}; the result has that of {self.reference.label}" for difference in self.allowed]
        if self.untied:
            described.append("output layer and embedding differ in a model: the result is not tied")
        return described

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
    located = locate_recipe(recipe)
    recipe = located.recipe
    _refuse_adapter_options(located)
    models, base, fishers, groups = _open_all(located)
    reference = base or models[0]
    checkpoints = [*models, *([] if base is None else [base])]
    others = [checkpoint for checkpoint in checkpoints if checkpoint is not reference]
    allowed = check_kinds([reference, *others], recipe.allow_config, recipe.common_only)
    plan = Plan(located, reference, tuple(models), _tokenizer_model(located, models, base), allowed=allowed)
    plan.untied = is_untied(reference, groups)
    if recipe.common_rows:
        plan.rows = common_rows(reference, checkpoints)
        reference, base, *models = (cut(part, plan.rows) for part in (reference, base or reference, *models))
        fishers = [cut(fisher, plan.rows) for fisher in fishers]
        base = None if located.base is None else base
    inputs = (models, fishers, base)
    _plan_tensors(plan, reference, inputs, groups)
    _refuse_other_tokens(plan, checkpoints)
    return plan


def _open_all(located: LocatedRecipe) -> tuple[list[Checkpoint], Checkpoint | None, list[Checkpoint], Groups]:
    """Open the models, the base and the Fishers, with all names of their tied weights."""
    models = [_open(source, located.recipe) for source in located.models]
    base = None if located.base is None else _open(located.base, located.recipe)
    fishers = [_open(source, located.recipe) for source in located.fishers]
    if base is None:
        models, groups = share_tied(models)
    else:
        (base, *models), groups = share_tied([base, *models])
    return models, base, [share_fisher(fisher, groups) for fisher in fishers], groups


def _tokenizer_model(located: LocatedRecipe, models: Sequence[Checkpoint], base: Checkpoint | None) -> Checkpoint:
    """Return the model that the result's tokenizer and its rows beyond the common ones come from."""
    inputs = dict(zip((source.name for source in located.models), models, strict=True))
    if located.base is not None and base is not None:
        inputs[located.base.name] = base
    if located.tokenizer is None:
        return base or models[0]
    chosen = inputs[located.tokenizer.name]
    if not chosen.config:
        raise InputError(
            f"{chosen.label} has no config.json beside its weights, so its tokenizer is unknown (--tokenizer-from).",
            "Name a model that is a folder.",
        )
    return chosen


def _plan_tensors(
    plan: Plan,
    reference: Checkpoint,
    inputs: tuple[Sequence[Checkpoint], Sequence[Checkpoint], Checkpoint | None],
    groups: Groups,
) -> None:
    """Add a job for every tensor of the reference, and one for its rows beyond the common ones.

    Args:
        plan: gets the jobs and shards.
        reference: cut to the common rows.
        inputs: models, Fishers and base, likewise.
        groups: see :func:`merganser.checkpoints.vocabularies.tying.share_tied`.
    """
    recipe, base = plan.recipe, inputs[2]
    checkpoints = [*inputs[0], *([] if base is None else [base])]
    plan.only_reference, plan.left_out = _differences(reference, checkpoints, recipe, groups)
    plan.shards = {shard: [] for shard in map(_result_name(reference), reference.shards)}
    reference_only = set(plan.only_reference)
    layer_positions = positions(list(reference.tensors), groups)
    for name, tensor in reference.tensors.items():
        rule, arguments = recipe.resolve(layer_positions[name])
        job = _job(tensor, (rule, arguments), name in reference_only, plan, inputs)
        plan.jobs.append(job)
        shape = tensor.shape
        if name in plan.rows:
            shape = plan.tokenizer.tensors[name].shape
            if (others := rest(plan.tokenizer.tensors[name], plan.rows[name])) is not None:
                target = replace(job.target, shape=others.shape, offset=job.target.nbytes)
                plan.jobs.append(Job(target, (others,), (plan.tokenizer.label,)))
        plan.shards[job.target.path.name].append((name, job.target.dtype, shape))
    refuse_unmatched(recipe, [*reference.tensors, *groups])
    plan.shards = {shard: tensors for shard, tensors in plan.shards.items() if tensors}
    if not plan.rules and not plan.kept:
        raise InputError(
            f"There is nothing to merge: the models have no floating-point tensor in common with {reference.label}.",
            "Check the models.",
        )


def _refuse_other_tokens(plan: Plan, checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse models of another vocabulary, and a tokenizer with more tokens than the result has rows."""
    if plan.recipe.ignore_vocabulary:
        return
    read = cache(read_vocabulary)
    size = plan.reference.config.get("vocab_size")
    by_token = any(
        job.rule is not None and (size is None or size in job.target.shape or job.target.name in plan.rows)
        for job in plan.jobs
    )
    if by_token:
        others = [checkpoint for checkpoint in checkpoints if checkpoint is not plan.reference]
        check_vocabularies([plan.reference, *others], read, min(plan.rows.values(), default=None))
    tensors = plan.tokenizer.tensors if plan.rows else plan.reference.tensors
    rows = [number_of_rows(tensors[name]) for name in vocabulary_names(tensors) if EMBEDDING.search(name)]
    if not rows and isinstance(size, int):
        rows = [size]
    if rows:
        check_tokenizer_size(plan.tokenizer, read, max(rows))


def _open(source: Source, recipe: Recipe) -> Checkpoint:
    """Open a checkpoint, with its adapter; refuse a folder that holds two sets of weights."""
    checkpoint = open_model(source, recipe.allow_different_bases, recipe.allow_nonfinite)
    both = (checkpoint.folder / INDEX).is_file() and (checkpoint.folder / SINGLE).is_file()
    if both and SINGLE not in checkpoint.shards and not source.path.is_file():
        raise InputError(
            f"{source.name} has {INDEX} and {SINGLE}, which the index does not name: loaders differ in their choice.",
            "Remove the one that is out of date, or name the file.",
        )
    return checkpoint


def _refuse_adapter_options(located: LocatedRecipe) -> None:
    """Refuse options that apply only to merges of adapters."""
    recipe = located.recipe
    options = {
        "rank": recipe.rank is not None,
        "space": recipe.space != "update",
        "allow_different_bases": recipe.allow_different_bases and not located.adds_adapter,
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
    resolved: tuple[Rule | None, dict[str, Any]],
    reference_only: bool,
    plan: Plan,
    inputs: tuple[Sequence[Checkpoint], Sequence[Checkpoint], Checkpoint | None],
) -> Job:
    name = tensor.name
    (rule, arguments), (models, fishers, base) = resolved, inputs
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
    reference: Checkpoint, checkpoints: Sequence[Checkpoint], recipe: Recipe, groups: Groups
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
            if name not in reference.tensors and name not in groups:
                lacking.setdefault(name, f"{name} is in {checkpoint.label}, not in {reference.label}")
    differences = [*only.values(), *lacking.values()]
    if differences and not recipe.common_only:
        listed = "; ".join(differences[:6]) + (f"; and {len(differences) - 6} more" if len(differences) > 6 else "")
        raise InputError(
            f"The models differ: {listed}.",
            "Models of one architecture and vocabulary can be merged; to merge what they have in common and keep the "
            f"rest of the first (or the base), use --common-only{_rows_hint(reference, [*only, *lacking])}.",
        )
    if len(only) == len(reference.tensors):
        raise InputError(f"{reference.label} has no tensor in common with the others.", "Check the models.")
    return sorted(only), sorted(lacking)


def _rows_hint(reference: Checkpoint, names: Sequence[str]) -> str:
    """Return the hint to merge common rows, where only vocabularies differ."""
    fits = set(names) <= set(vocabulary_names(reference.tensors))
    return ", or for the common rows of vocabularies of different sizes, --common-rows" if fits else ""


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
