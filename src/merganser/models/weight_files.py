"""Save and load trained weights: PEFT layout for adapters, Hugging Face layout for whole models; safetensors only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from merganser.checkpoints.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from merganser.errors import InputError, first_line
from merganser.files.atomic import write_tensors
from merganser.files.documents import parse_json, read_text
from merganser.models import stacking
from merganser.models.base_reference import BaseReference
from merganser.models.library_output import silence_libraries
from merganser.models.pretrained import DTYPES, cast
from merganser.models.source import check_folder

FUNCTIONAL_KEYS = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "alpha_pattern",
    "rank_pattern",
)
"""Keys of an adapter's configuration that change the outputs of equal tensors."""


def save_adapter(model: Any, folder: Path, dtype: str | None = None, base: BaseReference | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; frozen and trained factors as one adapter.

    Equal adapters give equal bytes.

    Args:
        dtype: of the factors, a key of :data:`merganser.models.pretrained.DTYPES`; ``None``: as in memory.
        base: under which name others find the model; ``None``: as configured.

    Raises:
        InputError: a factor that is too large for ``dtype``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    factors, config = stacking.concatenate_adapters(model)
    if dtype is not None:
        factors = cast(factors, dict.fromkeys(factors, DTYPES[dtype]))
    write_tensors(folder / ADAPTER_WEIGHTS, factors, {"format": "pt"})
    if base is not None:
        config.base_model_name_or_path, config.revision = base.name, base.revision
    config.inference_mode = True  # as PEFT writes it; is_trainable=True is given when loading
    # PEFT's sets have no order, and 32.0 is written as 32.
    for key in ("target_modules", "exclude_modules"):
        if isinstance(getattr(config, key), set):
            setattr(config, key, sorted(getattr(config, key)))
    if float(config.lora_alpha).is_integer():
        config.lora_alpha = int(config.lora_alpha)
    config.save_pretrained(str(folder))


def load_adapter(model: Any, folder: Path) -> None:
    """Read an adapter into the existing factors, in place; after an error nothing is changed.

    An adapter of a higher rank and the same scaling was stacked: its last ranks are loaded into the trained factors,
    the others into frozen ones (see :mod:`merganser.models.stacking`).

    Raises:
        InputError: a missing or damaged file, or an adapter that does not fit this model.
    """
    folder = Path(folder)
    stored, tensors = _read_adapter(folder)
    frozen_rank = _check_config(model, stored, folder)
    trained = stacking.adapter_tensors(model, stacking.TRAINED)
    frozen = None
    if frozen_rank and all(".lora_" in name and tensor.ndim == 2 for name, tensor in tensors.items()):
        frozen, tensors = stacking.split_adapter(tensors, frozen_rank)
    _require_same_shapes(trained, tensors, f"The adapter in {folder}")
    if frozen is not None or stacking.FROZEN in model.peft_config:
        stacking.set_frozen_adapter(model, frozen)
    with torch.no_grad():
        for name, factor in trained.items():
            factor.copy_(tensors[name])


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an adapter's configuration and tensors."""
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(f"{folder} has no {file}.", "Give the folder of a saved adapter.")
    try:
        return parse_json(read_text(folder / ADAPTER_CONFIG)), load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"The adapter in {folder} is damaged: {error}.", "Restore the folder from a copy.") from error


def _check_config(model: Any, stored: dict[str, Any], folder: Path) -> int:
    """Refuse an adapter whose tensors would give other outputs here; return how many of its ranks are frozen."""
    from peft import LoraConfig

    current = _to_json(model.peft_config[stacking.TRAINED])
    defaults = _to_json(LoraConfig())
    frozen_rank = _extra_rank(stored, current)
    for key in FUNCTIONAL_KEYS:
        if frozen_rank and key in ("r", "lora_alpha"):
            continue
        in_file, in_model = stored.get(key, defaults.get(key)), current.get(key, defaults.get(key))
        if in_file != in_model:
            raise InputError(
                f"The adapter in {folder} has {key} = {in_file}, the model has {key} = {in_model}.",
                "Load the model with the LoRA options of the adapter.",
            )
    return frozen_rank


def _extra_rank(stored: dict[str, Any], current: dict[str, Any]) -> int:
    """Return how many ranks a stored adapter has beyond the model's at the same scaling; 0 if it was not stacked."""
    extra = stored.get("r", 0) - current["r"]
    if extra <= 0 or bool(stored.get("use_rslora")) != bool(current["use_rslora"]):
        return 0
    growth = stored["r"] / current["r"]
    alpha = current["lora_alpha"] * (math.sqrt(growth) if current["use_rslora"] else growth)
    return extra if math.isclose(stored.get("lora_alpha", 0), alpha, rel_tol=1e-9) else 0


def load_model(model: nn.Module, folder: Path) -> None:
    """Read a whole model into the existing weights, in place; after an error nothing is changed.

    Raises:
        InputError: a missing or damaged file, or weights that do not fit this model.
    """
    folder = Path(folder)
    check_folder(folder, str(folder))
    try:
        with silence_libraries():
            loaded, report = type(model).from_pretrained(  # type: ignore[attr-defined]
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(
            f"The weights in {folder} do not load into this model: {first_line(error)}",
            "Give the folder of a model of the same architecture and size.",
        ) from error
    if wrong := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise InputError(
            f"The weights in {folder} do not fit: {len(wrong)} names differ, first '{wrong[0]}'.",
            "Give the folder of a model of the same architecture and size.",
        )
    _require_same_shapes(model.state_dict(), loaded.state_dict(), f"The model in {folder}")
    copy_weights(loaded, model)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy every weight and persistent buffer of ``source`` into ``target`` in place; names and shapes must agree."""
    tensors = source.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            tensor.copy_(tensors[name])


def _require_same_shapes(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors whose names or shapes differ from the model's."""
    names = sorted(expected.keys() ^ loaded.keys())
    if names:
        side = "lacks" if names[0] in expected else "has an unknown"
        raise InputError(
            f"{what} does not fit the model: {len(names)} names differ; it {side} '{names[0]}'.",
            "Load the model (and the LoRA targets) that it was made with.",
        )
    for name in sorted(expected):
        if expected[name].shape != loaded[name].shape:
            raise InputError(
                f"{what} does not fit the model: '{name}' has shape {tuple(loaded[name].shape)}, "
                f"and the model expects {tuple(expected[name].shape)}.",
                "Load the model (and the LoRA rank) that it was made with.",
            )


def _to_json(config: Any) -> dict[str, Any]:
    """Return a PEFT configuration as its JSON file holds it: sets as sorted lists, enumerations as their values."""

    def encode(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))

    return json.loads(json.dumps(config.to_dict(), default=encode))
