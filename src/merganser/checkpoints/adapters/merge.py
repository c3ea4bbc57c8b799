"""Merge PEFT adapters without PEFT: plan, compute and write."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.adapters.base_copies import BaseCopy, common_copies
from merganser.checkpoints.adapters.source import PREFIX, Adapter, check_bases, read_adapter
from merganser.checkpoints.card import model_card
from merganser.checkpoints.chat_settings import dropped_settings
from merganser.checkpoints.dtypes import LARGEST, encode
from merganser.checkpoints.merge import Report, check_target, existing_parent, input_paths, result_folder, write_recipe
from merganser.checkpoints.merged_lineage import check_lineages, write_merged_lineage
from merganser.checkpoints.plan import check_room
from merganser.checkpoints.recipe import Recipe, positions, refuse_unmatched
from merganser.checkpoints.sidecar_files import copy_sidecar_files, uncopied_files
from merganser.checkpoints.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LocatedRecipe, adapter_folder, locate_recipe
from merganser.checkpoints.tensor_writer import write_bytes
from merganser.errors import InputError
from merganser.files.safetensors_file import ITEM_SIZE, create, header_bytes
from merganser.merging.adapters import (
    Factors,
    check_equal_ranks,
    merge_factors,
    merge_updates,
    rescale_to_fit,
    result_rank,
    rule_coefficients,
)
from merganser.merging.rule import Rule, sum_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

_METADATA = {"format": "pt"}


@dataclass(frozen=True, eq=False)
class AdapterPlan:
    """The plan of a merge of adapters.

    Attributes:
        located: the recipe and where its adapters are.
        adapters: as read.
        dtype: of the result.
        modules: module -> the rule that merges it and its arguments; without modules kept from the base, where their
            update is zero.
        ranks: module -> the rank of the result.
        others: name in the file -> rule and arguments, for biases and saved modules.
        shapes: every tensor of the result, by its name in the file.
        seconds: time taken to read the adapters.
        copies: name in the file -> unchanged tensor of the base.
    """

    located: LocatedRecipe
    adapters: list[Adapter]
    dtype: str
    seconds: float
    modules: dict[str, tuple[Rule, dict[str, Any]]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    others: dict[str, tuple[Rule, dict[str, Any]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    copies: dict[str, BaseCopy] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The recipe, with hub ids at the commits they resolved to."""
        return self.located.recipe

    def parts(self, module: str) -> list[Factors | None]:
        """Return a module's factors in each adapter; ``None`` where an adapter has none."""
        return [adapter.modules.get(module) for adapter in self.adapters]

    @property
    def rules(self) -> dict[str, int]:
        """Number of modules per rule."""
        counts: dict[str, int] = {}
        for rule, _ in self.modules.values():
            counts[rule.name] = counts.get(rule.name, 0) + 1
        return counts

    @property
    def file_bytes(self) -> int:
        """Bytes of the weights file: tensors and header."""
        specs = self.tensor_specs()
        return len(header_bytes(specs, _METADATA)[0]) + sum(
            ITEM_SIZE[kind] * math.prod(size) for _, kind, size in specs
        )

    def tensor_specs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """List name, type and shape of every tensor of the result, in order."""
        copies = [(name, copy.tensor.dtype, copy.tensor.shape) for name, copy in self.copies.items()]
        return [*((name, self.dtype, shape) for name, shape in self.shapes.items()), *copies]


def plan_adapters(recipe: Recipe | LocatedRecipe) -> AdapterPlan:
    """Read the adapters and decide what happens to every module, without computing it.

    Args:
        recipe: its models are adapters, of one base model; it names no base.

    Raises:
        InputError: see :func:`read_adapter`; a base, or an option that only merging models takes; adapters of different
            base models; modules whose shapes differ; biases or saved modules that a rule cannot merge without the base;
            no rank for a rule that needs one; an override that matches nothing.
    """
    _refuse_options(recipe)
    located = locate_recipe(recipe)
    check_lineages(located)
    recipe = located.recipe
    started = time.perf_counter()
    adapters = [read_adapter(source, recipe.allow_nonfinite) for source in located.models]
    plan = AdapterPlan(located, adapters, recipe.storage_dtype or adapters[0].dtype, time.perf_counter() - started)
    if not recipe.allow_different_bases:
        check_bases(adapters)
    modules = sorted({module for adapter in adapters for module in adapter.modules})
    plan.copies.update(common_copies([(adapter.label, adapter.config, adapter.copies) for adapter in adapters]))
    others = sorted({name for adapter in adapters for name in adapter.others if name not in plan.copies})
    weights = {f"{module}.weight": module for module in modules}
    layer_positions = positions([*weights, *(name.removeprefix(PREFIX) for name in others)])
    refuse_unmatched(recipe, list(layer_positions))
    for name, module in weights.items():
        rule, arguments = recipe.resolve(layer_positions[name])
        if rule is None:
            continue
        if recipe.space == "factors":
            plan.ranks[module] = check_equal_ranks(module, plan.parts(module), rule)
        else:
            plan.ranks[module] = result_rank(module, plan.parts(module), rule, arguments, recipe.rank)
        plan.modules[module] = rule, arguments
    if not plan.modules:
        raise InputError("No module is left to merge.", "Overrides keep every module from the base: change them.")
    for name in others:
        plan.others[name] = _check_weighted_mean(
            name, adapters, *recipe.resolve(layer_positions[name.removeprefix(PREFIX)])
        )
    for module in plan.modules:
        plan.shapes.update(zip(_factor_names(plan, module), _factor_shapes(plan, module), strict=True))
    plan.shapes.update({name: adapters[0].others[name].shape for name in others})
    return plan


def _refuse_options(recipe: Recipe | LocatedRecipe) -> None:
    """Refuse options that apply only to merges of models."""
    recipe = recipe.recipe if isinstance(recipe, LocatedRecipe) else recipe
    if recipe.base is not None:
        raise InputError(
            "Adapters are merged with each other, and a base was given.",
            "Omit it: the base's update is zero. PEFT's merge_and_unload puts the result into a model.",
        )
    if recipe.ignore_vocabulary:
        raise InputError("The option ignore_vocabulary (--ignore-vocabulary) applies only to whole models.", "Omit it.")
    for key in ("common_rows", "allow_config"):
        if getattr(recipe, key):
            raise InputError(f"The option {key} (--{key.replace('_', '-')}) applies only to whole models.", "Omit it.")
    if recipe.common_only:
        raise InputError(
            "The option common_only (--common-only) applies only to whole models.",
            "Omit it: where an adapter does not touch a module, its update is zero.",
        )
    if recipe.space == "factors" and recipe.rank is not None:
        raise InputError(
            "A rank was given with the space of factors, which does not change the rank.", "Omit one of them."
        )


def _check_weighted_mean(
    name: str, adapters: Sequence[Adapter], rule: Rule | None, arguments: dict[str, Any]
) -> tuple[Rule, dict[str, Any]]:
    """Check that the rule is a weighted mean: biases and saved modules are full weights and need the base otherwise."""
    described = f"{name} (a bias or a module to save)"
    missing = [adapter.label for adapter in adapters if name not in adapter.others]
    if missing:
        raise InputError(
            f"{described} is missing in {missing[0]}.",
            "Without the base's value it cannot be merged exactly: train all adapters with the same bias and "
            "modules_to_save.",
        )
    shapes = {adapter.others[name].shape for adapter in adapters}
    if len(shapes) > 1:
        raise InputError(f"{name} has shapes {sorted(map(list, shapes))}.", "The adapters belong to different models.")
    weights = None if rule is None else rule_coefficients(rule, arguments, len(adapters))
    total = None if weights is None else sum_weights(weights)
    if rule is not None and (abs(total - 1.0) < 1e-9 if total is not None else rule.base == "none" and not rule.extra):
        return rule, arguments
    sum_text = "" if total is None else f" with weights that sum to {total:g}"
    raise InputError(
        f"{described} cannot be merged by {rule.name if rule else 'keeping the base'}{sum_text}.",
        "That needs the base's value. Use a weighted mean in an override: "
        "{match: '*NAME*', rule: linear, normalize: true}.",
    )


def _factor_names(plan: AdapterPlan, module: str) -> tuple[str, str]:
    """Return the names of a module's factors in PEFT's file."""
    if any(module in adapter.embeddings for adapter in plan.adapters):
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _factor_shapes(plan: AdapterPlan, module: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a module's factors in PEFT's file: matrices, except for convolutions."""
    part = next(part for part in plan.parts(module) if part is not None)
    rank, rows, columns = plan.ranks[module], part.b.shape[0], part.a.shape[1]
    kernel = next((a.kernels[module] for a in plan.adapters if module in a.kernels), None)
    if kernel is None:
        return (rank, columns), (rows, rank)
    return (rank, *kernel), (rows, rank, *([1] * (len(kernel) - 1)))


def merge_adapters(recipe: Recipe | LocatedRecipe, out: str | Path, *, overwrite: bool = False) -> Report:
    """Merge adapters into a new one for PEFT.

    Args:
        recipe: its models are adapters; no base. ``space`` and ``rank`` as in the recipe.
        out: folder to create.
        overwrite: replace a folder that is already there.

    Returns:
        A report with the truncation error of every module.

    Raises:
        InputError: see :func:`plan_adapters`; ``out`` exists or cannot be written; no room; a result that is not finite
            or too large for its type (named).
        RunError: the disk filled up or failed; nothing is left on it.
    """
    target = Path(out).expanduser().resolve()
    _refuse_options(recipe)
    located = locate_recipe(recipe)
    check_target(target, overwrite, input_paths(located))
    started = time.perf_counter()
    plan = plan_adapters(located)
    check_room(plan.file_bytes, existing_parent(target))
    not_copied = uncopied_files(plan.adapters[0].folder, (ADAPTER_WEIGHTS,))
    merged: dict[str, Factors] = {}
    errors: dict[str, float] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for module in plan.modules:
        factors, errors[module] = _merge_module(plan, module)
        merged[module] = factors
        tensors.update(zip(_factor_names(plan, module), (factors.a, factors.b), strict=True))
    tensors |= {name: _merge_other(plan, name) for name in plan.others}
    nonfinite = [name for name, values in tensors.items() if not _check_finite(plan, name, values)]
    with result_folder(target) as folder:
        _write(plan, folder, merged, tensors)
    return Report(
        out=str(target),
        tensors=plan.rules,
        bytes=plan.file_bytes,
        seconds=time.perf_counter() - started,
        nonfinite=nonfinite,
        errors=errors,
        not_copied=not_copied,
        dropped=_dropped(plan),
    )


def _tokenizer_folder(plan: AdapterPlan) -> Path | None:
    """Return the folder of the adapter whose tokenizer the recipe names."""
    source = plan.located.tokenizer
    return None if source is None else adapter_folder(source.path)


def _dropped(plan: AdapterPlan) -> list[str]:
    """List settings beside the weights that adapters have and the result lacks."""
    kept = _tokenizer_folder(plan) or plan.adapters[0].folder
    return dropped_settings(kept, [(adapter.label, adapter.folder) for adapter in plan.adapters])


def _merge_module(plan: AdapterPlan, module: str) -> tuple[Factors, float]:
    rule, arguments = plan.modules[module]
    with np.errstate(over="ignore", invalid="ignore"):
        if plan.recipe.space == "factors":
            merged, error = merge_factors(module, plan.parts(module), rule, arguments)
        else:
            merged, error = merge_updates(module, plan.parts(module), rule, arguments, plan.recipe.rank)
    return rescale_to_fit(module, merged, LARGEST[plan.dtype]), error


def _merge_other(plan: AdapterPlan, name: str) -> NDArray[Any]:
    rule, arguments = plan.others[name]
    tensors = [adapter.others[name] for adapter in plan.adapters]
    # The weights sum to one: the base's value cancels.
    positional: list[Any] = [tensors] if rule.base == "none" else [tensors, tensors[0]]
    with np.errstate(over="ignore", invalid="ignore"):
        merged: NDArray[Any] = rule.function(*positional, **arguments)
    return merged


def _check_finite(plan: AdapterPlan, name: str, values: NDArray[Any]) -> bool:
    """Return whether a result is finite in its type; refuse one that is not, unless the recipe allows it."""
    if bool((np.abs(values) <= LARGEST[plan.dtype]).all()):
        return True
    if plan.recipe.allow_nonfinite:
        return False
    raise InputError(
        f"The merged {name} is not finite, or larger than the type of the result holds ({LARGEST[plan.dtype]:g}).",
        "Choose a wider type (--dtype float32, dtype: float32 in the file) or smaller weights.",
    )


def _write(plan: AdapterPlan, folder: Path, merged: Mapping[str, Factors], tensors: Mapping[str, NDArray[Any]]) -> None:
    placed = create(folder / ADAPTER_WEIGHTS, plan.tensor_specs(), _METADATA)
    with open(folder / ADAPTER_WEIGHTS, "r+b") as file:
        for tensor in placed:
            if tensor.name in plan.copies:
                write_bytes(file.fileno(), plan.copies[tensor.name].raw, tensor.offset)
                continue
            values = np.ascontiguousarray(tensors[tensor.name])
            write_bytes(file.fileno(), encode(values.reshape(-1), plan.dtype), tensor.offset)
    copy_sidecar_files(plan.adapters[0].folder, folder, (ADAPTER_WEIGHTS,), _tokenizer_folder(plan))
    config = json.dumps(_config(plan.adapters, merged), indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(config + "\n", encoding="utf-8")
    write_recipe(folder, plan.located)
    (folder / "README.md").write_text(model_card(plan.recipe, adapter=True), encoding="utf-8")
    write_merged_lineage(plan.located, folder)


def describe(
    recipe: Recipe | LocatedRecipe, out: str | Path | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Describe what merging the adapters would do, after its checks: modules, ranks, bytes, disk, seconds.

    Raises:
        InputError: see :func:`plan_adapters`; ``out`` exists; no room.
    """
    target = Path("merged" if out is None else out).expanduser().resolve()
    if out is not None:
        recipe = locate_recipe(recipe)
        check_target(target, overwrite, input_paths(recipe))
    plan = plan_adapters(recipe)
    check_room(plan.file_bytes, existing_parent(target))
    ranks = sorted(set(plan.ranks.values()))
    return {
        "modules": len(plan.modules),
        "rules": plan.rules,
        "other tensors": list(plan.others),
        "ranks": [str(sorted({factors.rank for factors in adapter.modules.values()})) for adapter in plan.adapters],
        "rank of the result": f"{'exact: ' if plan.recipe.rank is None else ''}{ranks}",
        "bytes to read": sum(adapter.bytes for adapter in plan.adapters),
        "bytes to write": plan.file_bytes,
        "bytes free": shutil.disk_usage(existing_parent(target)).free,
        "settings of other models": _dropped(plan),
        "files not copied": uncopied_files(plan.adapters[0].folder, (ADAPTER_WEIGHTS,)),
        "estimated seconds": round(_estimate(plan), 1),
    }


def _estimate(plan: AdapterPlan) -> float:
    """Estimate the seconds of the merge: those of reading, and a trial merge of the largest module of each rule."""
    sizes: dict[str, dict[str, int]] = {}
    for module, (rule, _) in plan.modules.items():
        part = next(part for part in plan.parts(module) if part is not None)
        sizes.setdefault(rule.name, {})[module] = part.b.shape[0] * part.a.shape[1]
    seconds = plan.seconds
    for rule_sizes in sizes.values():
        largest = max(rule_sizes, key=lambda module: rule_sizes[module])
        started = time.perf_counter()
        _merge_module(plan, largest)
        seconds += (time.perf_counter() - started) * sum(rule_sizes.values()) / rule_sizes[largest]
    return seconds


def _config(adapters: Sequence[Adapter], merged: Mapping[str, Factors]) -> dict[str, Any]:
    """Return the first adapter's config with the result's ranks, scalings and, if they differ, module names."""
    config = dict(adapters[0].config)
    ranks = {module: factors.rank for module, factors in merged.items()}
    common = max(ranks.values(), key=lambda rank: (list(ranks.values()).count(rank), rank))
    alphas = {module: factors.scaling * factors.rank for module, factors in merged.items()}
    alpha = alphas[next(module for module, rank in ranks.items() if rank == common)]
    config |= {
        "r": common,
        "lora_alpha": _integral(alpha),
        "use_rslora": False,
        "rank_pattern": {re.escape(module): rank for module, rank in ranks.items() if rank != common},
        "alpha_pattern": {re.escape(module): _integral(other) for module, other in alphas.items() if other != alpha},
        "init_lora_weights": True,
        "inference_mode": True,
    }
    same_targets = all(adapter.config.get("target_modules") == config.get("target_modules") for adapter in adapters)
    # A regular expression is not copied: whoever loads the result would match it without a limit of time.
    named = not isinstance(config.get("target_modules"), str)
    if not (same_targets and named) or any(set(adapter.modules) != set(merged) for adapter in adapters):
        config |= {"target_modules": sorted(merged), "exclude_modules": None}
        config |= {"layers_to_transform": None, "layers_pattern": None}
    return config


def _integral(number: float) -> float | int:
    return int(number) if number == int(number) else number
