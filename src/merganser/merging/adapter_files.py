"""Adapters of PEFT, read and written without PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import InputError
from merganser.merging.adapters import Factors, coefficients_of, merge_factors, merge_updates
from merganser.merging.card import model_card
from merganser.merging.checkpoints import Report, check_target, with_folder, write_recipe
from merganser.merging.recipe import Place, Recipe, positions
from merganser.merging.rule import Rule
from merganser.merging.safetensors_file import FLOATING, create, read_header
from merganser.merging.source import ADAPTER_CONFIG, is_adapter, locate, read_json
from merganser.merging.storage import count_nonfinite, decode, encode
from merganser.merging.streaming import write_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?P<weight>\.weight)?")
_VARIANTS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
)
_CLEAN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as read.

    Attributes:
        label: as the user named it.
        config: its ``adapter_config.json``.
        modules: module -> factors.
        kernels: module -> shape of ``a`` behind its rank, where that is not one number (convolutions).
        embeddings: modules whose factors are those of an embedding.
        others: full tensors (biases, modules to save) by their name in the file.
        dtype: of the factors.
    """

    label: str
    config: dict[str, Any]
    modules: dict[str, Factors]
    kernels: dict[str, tuple[int, ...]]
    embeddings: frozenset[str]
    others: dict[str, NDArray[Any]]
    dtype: str


def read_adapter(label: str, allow_nonfinite: bool = False) -> Adapter:
    """Read an adapter.

    Raises:
        InputError: no adapter there; a pickle; a variant that can't be merged exactly (named); weights that are not
            finite (named).
    """
    folder = locate(label)
    if not is_adapter(folder):
        raise InputError(
            f"{label} is no adapter (it has no {ADAPTER_CONFIG}), others are.",
            "Adapters are merged with adapters. To merge models, first put the adapters into theirs: merge_and_unload "
            "of PEFT, or merganser export --merged.",
        )
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise InputError(
                f"{folder / 'adapter_model.bin'} is a pickle, which can run code when it is read.",
                f'Convert it first: python -c "import torch; from safetensors.torch import save_file; '
                f"save_file(torch.load('{folder / 'adapter_model.bin'}', weights_only=True), '{folder / WEIGHTS}')\"",
            )
        raise InputError(f"{label} has no {WEIGHTS}.", "Save the adapter again.")
    config = read_json(folder / ADAPTER_CONFIG)
    _refuse_variants(label, config)
    tensors, dtype = _tensors(folder / WEIGHTS, label, allow_nonfinite)
    return _sorted_out(label, config, tensors, dtype)


def _refuse_variants(label: str, config: Mapping[str, Any]) -> None:
    """Refuse by name what is not plain LoRA on an unchanged base."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{label} is of type {config.get('peft_type')}.", "Only LoRA adapters can be merged.")
    unknown_uses = [key for key in config if key.startswith("use_") and key != "use_rslora"]
    for key in (*unknown_uses, *_VARIANTS):
        if config.get(key):
            what = "DoRA (use_dora)" if key == "use_dora" else key
            raise InputError(
                f"{label} uses {what}, whose update is not scaling * B A.",
                "Put it into its model first (merge_and_unload of PEFT) and merge the models.",
            )
    start = config.get("init_lora_weights")
    if start not in _CLEAN_STARTS:
        raise InputError(
            f"{label} was started with init_lora_weights={start!r}, which changes the base model.",
            "Convert it to plain LoRA first (path_initial_model_for_weight_conversion of PEFT's save_pretrained).",
        )


def _tensors(path: Path, label: str, allow_nonfinite: bool) -> tuple[dict[str, NDArray[Any]], str]:
    found: dict[str, NDArray[Any]] = {}
    dtypes: list[str] = []
    for tensor in read_header(path)[0]:
        if tensor.dtype not in FLOATING:
            raise InputError(f"{tensor.name} of {label} is {tensor.dtype}.", "Factors are floating-point.")
        raw = np.fromfile(path, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
        if not allow_nonfinite and count_nonfinite(raw, tensor.dtype):
            raise InputError(f"{tensor.name} of {label} holds NaN or infinity.", "Such an adapter is broken.")
        work = np.dtype(np.float64 if tensor.dtype == "F64" else np.float32)
        found[tensor.name] = decode(raw, tensor.dtype, work).reshape(tensor.shape)
        dtypes.append(tensor.dtype)
    if not found:
        raise InputError(f"{path} holds no tensor.", "Save the adapter again.")
    return found, dtypes[0]


def _sorted_out(label: str, config: dict[str, Any], tensors: Mapping[str, NDArray[Any]], dtype: str) -> Adapter:
    sides: dict[str, dict[str, NDArray[Any]]] = {}
    embeddings = set()
    others = {}
    for name, tensor in tensors.items():
        matched = _FACTOR.fullmatch(name)
        if matched is None:
            if ".lora_" in name:
                raise InputError(f"{label} holds {name}, which plain LoRA has not.", "It can't be merged exactly.")
            others[name] = tensor
            continue
        module = matched["module"].removeprefix(PREFIX)
        sides.setdefault(module, {})[matched["side"]] = tensor
        if matched["embedding"]:
            embeddings.add(module)
    modules, kernels = {}, {}
    for module, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise InputError(f"{label} holds only one factor of {module}.", "Save the adapter again.")
        a, b = pair["A"], pair["B"]
        if any(extent != 1 for extent in b.shape[2:]):
            raise InputError(f"The factors of {module} in {label} have shape {list(b.shape)}.", "They can't be merged.")
        if a.ndim > 2:
            kernels[module] = a.shape[1:]
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        modules[module] = Factors(a, b, scaling_of(config, module, a.shape[0]))
    return Adapter(label, config, modules, kernels, frozenset(embeddings), others, dtype)


def scaling_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """``alpha / rank`` or, rank-stabilised, ``alpha / sqrt(rank)``, with the module's own alpha where it has one."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(own)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def merge_adapters(recipe: Recipe, out: str | Path, *, overwrite: bool = False) -> Report:
    """Merge adapters into a new one for PEFT.

    Args:
        recipe: its models are folders of adapters; no base. ``space`` and ``rank`` as in the recipe.
        out: the folder to make.
        overwrite: replace a folder that is already there.

    Returns:
        A report with the truncation error of every module.

    Raises:
        InputError: see :func:`read_adapter`; modules whose shapes differ; biases or saved modules that a rule can't
        merge
            without the base; no rank for a rule that needs one.
    """
    _refuse_base(recipe)
    target = Path(out).expanduser().resolve()
    check_target(target, overwrite)
    started = time.perf_counter()
    adapters = [read_adapter(name, recipe.allow_nonfinite) for name in recipe.models]
    merged, errors, counts = _merge_modules(recipe, adapters)
    others = _merge_others(recipe, adapters)
    config = _config(adapters, merged)
    tensors = _named(adapters, merged) | others
    dtype = recipe.dtype or adapters[0].dtype

    def fill(folder: Path) -> None:
        laid = create(
            folder / WEIGHTS, [(name, dtype, value.shape) for name, value in tensors.items()], {"format": "pt"}
        )
        with open(folder / WEIGHTS, "r+b") as file:
            for place in laid:
                values = np.ascontiguousarray(tensors[place.name])
                with np.errstate(over="ignore"):
                    write_from(file.fileno(), encode(values.reshape(-1), dtype), place.offset)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_recipe(folder, recipe)
        (folder / "README.md").write_text(model_card(recipe, adapter=True), encoding="utf-8")

    with_folder(target, fill)
    return Report(
        out=str(target),
        tensors=counts,
        bytes=(target / WEIGHTS).stat().st_size,
        seconds=time.perf_counter() - started,
        errors=errors,
    )


def _refuse_base(recipe: Recipe) -> None:
    if recipe.base is not None:
        raise InputError(
            "Adapters are merged with each other; there is a base.",
            "Leave it out: the base's update is zero. PEFT's merge_and_unload puts the result into a model.",
        )


def describe(recipe: Recipe) -> dict[str, Any]:
    """What merging the adapters would do: modules, ranks, bytes."""
    _refuse_base(recipe)
    adapters = [read_adapter(name, recipe.allow_nonfinite) for name in recipe.models]
    modules = _modules(adapters)
    ranks = {sum(a.modules[m].rank for a in adapters if m in a.modules) for m in modules}
    return {
        "modules": len(modules),
        "other tensors": sorted(set().union(*(adapter.others for adapter in adapters))),
        "ranks": [str(sorted({factors.rank for factors in adapter.modules.values()})) for adapter in adapters],
        "rank of the result": str(recipe.rank) if recipe.rank is not None else f"exact: {sorted(ranks)}",
    }


def _modules(adapters: Sequence[Adapter]) -> list[str]:
    return sorted({module for adapter in adapters for module in adapter.modules})


def _merge_modules(
    recipe: Recipe, adapters: Sequence[Adapter]
) -> tuple[dict[str, Factors], dict[str, float], dict[str, int]]:
    names = _modules(adapters)
    places = positions([f"{name}.weight" for name in names])
    merged: dict[str, Factors] = {}
    errors: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name in names:
        rule, arguments = recipe.resolve(places[f"{name}.weight"])
        if rule is None:
            continue
        parts = [adapter.modules.get(name) for adapter in adapters]
        if recipe.space == "factors":
            merged[name], errors[name] = merge_factors(name, parts, rule, arguments)
        else:
            merged[name], errors[name] = merge_updates(name, parts, rule, arguments, recipe.rank)
        counts[rule.name] = counts.get(rule.name, 0) + 1
    if not merged:
        raise InputError("Nothing is left to merge.", "Every module is kept from the base, where its update is zero.")
    return merged, errors, counts


def _merge_others(recipe: Recipe, adapters: Sequence[Adapter]) -> dict[str, NDArray[Any]]:
    """Biases and saved modules: whole weights, so only a weighted mean of them is a weight again without the base."""
    merged = {}
    for name in sorted(set().union(*(adapter.others for adapter in adapters))):
        missing = [adapter.label for adapter in adapters if name not in adapter.others]
        if missing:
            raise InputError(
                f"{name} (a bias or a module to save) is missing in {missing[0]}.",
                "Without the base's value it can't be merged exactly: train all adapters with the same bias and "
                "modules_to_save.",
            )
        rule, arguments = recipe.resolve(Place(name.removeprefix(PREFIX), 0.0))
        tensors = [adapter.others[name] for adapter in adapters]
        _check_alike(name, tensors)
        if rule is None or not _keeps_a_mean(rule, arguments, len(tensors)):
            raise InputError(
                f"{name} (a bias or a module to save) can't be merged by {rule.name if rule else 'keeping the base'}.",
                "That needs the base's value. Give it a weighted mean by an override: {match: '*NAME*', rule: linear}.",
            )
        if rule.base == "required":
            # Weights that sum to one: the base's value cancels.
            merged[name] = rule.function(tensors, tensors[0], **arguments)
        else:
            merged[name] = rule.function(tensors, **arguments)
    return merged


def _keeps_a_mean(rule: Rule, arguments: Mapping[str, Any], count: int) -> bool:
    """Whether the rule gives a weight from whole weights, without the base."""
    coefficients = coefficients_of(rule, arguments, count)
    if rule.base == "none" and not rule.extra:
        return True
    return coefficients is not None and abs(math.fsum(coefficients) - 1.0) < 1e-9


def _check_alike(name: str, tensors: Sequence[NDArray[Any]]) -> None:
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) > 1:
        raise InputError(f"{name} has shapes {sorted(map(list, shapes))}.", "The adapters belong to different models.")


def _named(adapters: Sequence[Adapter], merged: Mapping[str, Factors]) -> dict[str, NDArray[Any]]:
    """The factors under PEFT's names, in PEFT's shapes."""
    embeddings = frozenset().union(*(adapter.embeddings for adapter in adapters))
    kernels = {module: shape for adapter in adapters for module, shape in adapter.kernels.items()}
    tensors: dict[str, NDArray[Any]] = {}
    for module, factors in merged.items():
        a, b = factors.a, factors.b
        if module in kernels:
            a = a.reshape(len(a), *kernels[module])
            b = b.reshape(*b.shape, *([1] * (len(kernels[module]) - 1)))
        if module in embeddings:
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = a
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = b
        else:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
    return tensors


def _config(adapters: Sequence[Adapter], merged: Mapping[str, Factors]) -> dict[str, Any]:
    """The first adapter's config with the ranks and scalings of the result, and its modules by their full names."""
    config = dict(adapters[0].config)
    ranks = {module: factors.rank for module, factors in merged.items()}
    common = max(ranks.values(), key=lambda rank: (list(ranks.values()).count(rank), rank))
    alphas = {module: factors.scaling * factors.rank for module, factors in merged.items()}
    alpha = alphas[next(module for module, rank in ranks.items() if rank == common)]
    config |= {
        "r": common,
        "lora_alpha": _whole(alpha),
        "use_rslora": False,
        "rank_pattern": {re.escape(module): rank for module, rank in ranks.items() if rank != common},
        "alpha_pattern": {re.escape(module): _whole(own) for module, own in alphas.items() if own != alpha},
        "init_lora_weights": True,
        "inference_mode": True,
    }
    alike = all(adapter.config.get("target_modules") == config.get("target_modules") for adapter in adapters)
    if not alike or any(set(adapter.modules) != set(merged) for adapter in adapters):
        config |= {"target_modules": sorted(merged), "exclude_modules": None}
        config |= {"layers_to_transform": None, "layers_pattern": None}
    return config


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number
