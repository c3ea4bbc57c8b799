"""Read PEFT adapters without PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoints.adapters.base_copies import COPY, BaseCopy, may_be_copy
from merganser.checkpoints.adapters.patterns import ModulePatterns
from merganser.checkpoints.dtypes import count_nonfinite, decode
from merganser.checkpoints.source import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Source,
    adapter_folder,
    locate,
    read_json,
    refuse_pickle,
)
from merganser.errors import InputError
from merganser.files.safetensors_file import FLOATING, Tensor, read_header
from merganser.merging.adapters import Factors

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
_IN_CACHE = re.compile(r"models--(?P<id>[^/]+)/snapshots/[^/]+$")


@dataclass(frozen=True, eq=False)
class Adapter:
    """A PEFT adapter in memory.

    Attributes:
        label: as the user named it.
        folder: where it is.
        config: its ``adapter_config.json``.
        modules: module -> factors.
        kernels: module -> dimensions of ``a`` after the rank, for convolutions.
        embeddings: modules whose factors are those of an embedding.
        others: full tensors (biases, modules to save) by their name in the file.
        dtype: of the factors.
        bytes: of all tensors.
        copies: tensors that may be unchanged ones of the base, by their name in the file.
    """

    label: str
    folder: Path
    config: dict[str, Any]
    modules: dict[str, Factors]
    kernels: dict[str, tuple[int, ...]]
    embeddings: frozenset[str]
    others: dict[str, NDArray[Any]]
    dtype: str
    bytes: int
    copies: dict[str, BaseCopy] = field(default_factory=dict)


def read_adapter(source: Source | str, allow_nonfinite: bool = False) -> Adapter:
    """Read an adapter from its folder, or from its weights file with the config beside it.

    Args:
        source: where it is, or a name to :func:`merganser.checkpoints.source.locate`.
        allow_nonfinite: accept NaN and infinity.

    Raises:
        InputError: no adapter there; a pickle; a variant that cannot be merged exactly (named); a config or factors
            that are broken (file and key are named); weights that are not finite (named).
    """
    source = locate(source) if isinstance(source, str) else source
    label, folder = source.name, adapter_folder(source.path)
    if folder is None:
        raise InputError(
            f"{label} is not an adapter (it has no {ADAPTER_CONFIG}), but another input is.",
            "Adapters are merged with adapters. To merge models, first put the adapters into theirs: merge_and_unload "
            "of PEFT, or merganser export --merged.",
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            refuse_pickle(folder / "adapter_model.bin")
        raise InputError(f"{label} has no {ADAPTER_WEIGHTS}.", "Save the adapter again.")
    config = read_json(folder / ADAPTER_CONFIG)
    refuse_variants(label, config)
    patterns = check_alphas(config, folder / ADAPTER_CONFIG)
    header = read_header(folder / ADAPTER_WEIGHTS)[0]
    tensors, copies = _read_tensors(config, header, label, allow_nonfinite)
    dtype = next(tensor.dtype for tensor in header if tensor.name in tensors)
    nbytes = sum(tensor.nbytes for tensor in header)
    adapter = _build_adapter((label, folder / ADAPTER_WEIGHTS), config, patterns, tensors, dtype)
    return replace(adapter, copies=copies, bytes=nbytes)


def refuse_variants(label: str, config: Mapping[str, Any]) -> None:
    """Refuse adapters that are not plain LoRA on an unchanged base.

    Raises:
        InputError: names the variant.
    """
    if config.get("peft_type") != "LORA":
        raise InputError(f"{label} is of type {config.get('peft_type')}.", "Only LoRA adapters can be merged.")
    unknown_uses = [key for key in config if key.startswith("use_") and key != "use_rslora"]
    for key in (*unknown_uses, *_VARIANTS):
        if config.get(key):
            what = "DoRA (use_dora)" if key == "use_dora" else key
            raise InputError(
                f"{label} uses {what}, whose update is not scaling * B A.",
                "Add it to its model first (merge_and_unload of PEFT) and merge the models.",
            )
    start = config.get("init_lora_weights")
    if start not in _CLEAN_STARTS:
        raise InputError(
            f"{label} was initialised with init_lora_weights={start!r}, which changes the base model.",
            "Convert it to plain LoRA first (path_initial_model_for_weight_conversion of PEFT's save_pretrained).",
        )


def check_alphas(config: Mapping[str, Any], path: Path) -> ModulePatterns:
    """Refuse scalings that cannot be read, and return the patterns of modules that have their own.

    Raises:
        InputError: ``lora_alpha`` or a value of ``alpha_pattern`` is not a finite number, or a pattern not a regular
            expression; names the file and the key.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise InputError(f"{path}: alpha_pattern is {patterns!r}.", "Use a map from patterns to numbers.")
    alphas = {"lora_alpha": config.get("lora_alpha", 8)}
    for pattern, alpha in patterns.items():
        alphas[f"alpha_pattern[{pattern!r:.200}]"] = alpha
    compiled = ModulePatterns("alpha_pattern", path, [*patterns])
    for key, alpha in alphas.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= sys.float_info.max:
            raise InputError(f"{path}: {key} is {alpha!r}.", "Use a finite number.")
    return compiled


def _read_tensors(
    config: Mapping[str, Any], header: Sequence[Tensor], label: str, allow_nonfinite: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, BaseCopy]]:
    """Read all tensors: name -> values, and those that may be copies of the base's; some are both."""
    values: dict[str, NDArray[Any]] = {}
    copies: dict[str, BaseCopy] = {}
    for tensor in header:
        if tensor.dtype not in FLOATING:
            raise InputError(f"{tensor.name} of {label} is {tensor.dtype}.", "Factors must be floating-point.")
        raw = np.fromfile(tensor.path, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
        if not allow_nonfinite and count_nonfinite(raw, tensor.dtype):
            raise InputError(
                f"{tensor.name} of {label} holds NaN or infinity.",
                "Such an adapter is damaged; to merge it anyway, allow non-finite weights (--allow-nonfinite).",
            )
        if may_be_copy(tensor.name, config):
            copies[tensor.name] = BaseCopy(tensor, raw)
        if COPY.fullmatch(tensor.name):
            continue
        work = np.dtype(np.float64 if tensor.dtype == "F64" else np.float32)
        values[tensor.name] = decode(raw, tensor.dtype, work).reshape(tensor.shape)
    if not values:
        raise InputError(f"{label} holds no factors of LoRA.", "Save the adapter again.")
    return values, copies


def _build_adapter(
    place: tuple[str, Path],
    config: dict[str, Any],
    patterns: ModulePatterns,
    tensors: Mapping[str, NDArray[Any]],
    dtype: str,
) -> Adapter:
    label, path = place
    sides: dict[str, dict[str, NDArray[Any]]] = {}
    embeddings = set()
    others = {}
    for name, tensor in tensors.items():
        matched = _FACTOR.fullmatch(name)
        if matched is None:
            if ".lora_" in name:
                raise InputError(
                    f"{label} holds {name}, which plain LoRA does not have.", "It cannot be merged exactly."
                )
            others[name] = tensor
            continue
        if tensor.ndim < 2 or 0 in tensor.shape:
            raise InputError(
                f"{path}: {name} has shape {list(tensor.shape)}.", "A factor must be a matrix of rank 1 or more."
            )
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
            raise InputError(
                f"The factors of {module} in {label} have shape {list(b.shape)}.", "They cannot be merged."
            )
        if a.ndim > 2:
            kernels[module] = a.shape[1:]
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        modules[module] = Factors(a, b, scaling_of(config, module, a.shape[0], patterns))
    return Adapter(label, path.parent, config, modules, kernels, frozenset(embeddings), others, dtype, 0)


def scaling_of(config: Mapping[str, Any], module: str, rank: int, patterns: ModulePatterns) -> float:
    """Compute ``alpha / rank``, or ``alpha / sqrt(rank)`` if rank-stabilised; a fitting pattern gives alpha.

    Raises:
        InputError: a pattern takes too long to match.
    """
    matched = patterns.first_match(module)
    alpha = config.get("lora_alpha", 8) if matched is None else config["alpha_pattern"][matched]
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_bases(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters of different base models; an adapter that names no base is accepted.

    Raises:
        InputError: two bases that differ in text, in resolved path and in their last name; names both.
    """
    known = [(adapter, adapter.config.get("base_model_name_or_path")) for adapter in adapters]
    named = [(adapter, base) for adapter, base in known if isinstance(base, str) and base.strip("/ ")]
    for adapter, base in named[1:]:
        first, other = named[0]
        if not same_base(base, other):
            raise InputError(
                f"{first.label} was trained on {other}, {adapter.label} on {base} (base_model_name_or_path).",
                "Updates of different models cannot be merged. If both are the same model, pass "
                "--allow-different-bases (allow_different_bases: true in the file).",
            )


def same_base(first: str, second: str) -> bool:
    """Return whether two ``base_model_name_or_path`` may be one model, such as a folder and a hub id of its name."""
    first, second = (
        _IN_CACHE.sub(lambda match: match["id"].replace("--", "/"), text.strip().rstrip("/"))
        for text in (first, second)
    )
    if first.rpartition("/")[2].lower() == second.rpartition("/")[2].lower():  # the hub ignores case, too
        return True
    try:
        return os.path.realpath(os.path.expanduser(first)) == os.path.realpath(os.path.expanduser(second))
    except ValueError:  # a NUL or half a character: no path
        return False
