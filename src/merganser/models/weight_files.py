"""Trained weights on disk: PEFT's layout for adapters, Hugging Face's for whole models; safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from merganser.errors import InputError
from merganser.models import stacking
from merganser.models.quiet import quiet

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

SAME_ANSWERS = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "alpha_pattern",
    "rank_pattern",
)
"""Keys of an adapter's configuration that change what equal tensors compute."""


def save_adapter(model: Any, folder: Path) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors``; earlier and trained factors as one adapter."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole, config = stacking.joined(model)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.inference_mode = True  # as PEFT writes it: a file is for use; who trains says so when loading
    # Equal adapters are equal files: PEFT's sets have no order, and 32.0 is 32.
    for key in ("target_modules", "exclude_modules"):
        if isinstance(getattr(config, key), set):
            setattr(config, key, sorted(getattr(config, key)))
    if float(config.lora_alpha).is_integer():
        config.lora_alpha = int(config.lora_alpha)
    config.save_pretrained(str(folder))


def load_adapter(model: Any, folder: Path) -> None:
    """Reads an adapter into the existing factors, in place; refused as a whole unless everything fits.

    One of a higher rank and the same scaling has grown: its last ranks go into the factors, the others become frozen
    ones beside them (see :mod:`merganser.models.stacking`).
    """
    from peft import LoraConfig

    folder = Path(folder)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(f"{folder} has no {file}.", "Give the folder of a saved adapter.")
    try:
        stored = json.loads((folder / ADAPTER_CONFIG).read_text())
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"The adapter in {folder} is damaged: {error}.", "Restore the folder from a copy.") from error
    current = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=_plain))
    defaults = json.loads(json.dumps(LoraConfig().to_dict(), default=_plain))
    extra = _growth(stored, current)
    for key in SAME_ANSWERS if not extra else [key for key in SAME_ANSWERS if key not in ("r", "lora_alpha")]:
        there, here = stored.get(key, defaults.get(key)), current.get(key, defaults.get(key))
        if there != here:
            raise InputError(
                f"The adapter in {folder} has {key} = {there}, the model has {key} = {here}.",
                "Load the model with the LoRA options of the adapter.",
            )
    own = stacking.tensors_of(model, stacking.TRAINED)
    earlier = None
    if extra and all(".lora_" in name and tensor.ndim == 2 for name, tensor in tensors.items()):
        earlier, tensors = stacking.parted(tensors, extra)
    _require_same(own, tensors, f"The adapter in {folder}")
    if earlier is not None or stacking.EARLIER in model.peft_config:
        stacking.put_earlier(model, earlier)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _growth(stored: dict[str, Any], current: dict[str, Any]) -> int:
    """Ranks that a stored adapter has beyond the model's at the same scaling; 0 where it has not grown."""
    extra = stored.get("r", 0) - current["r"]
    same = stored.get("lora_alpha", 0) * current["r"] == current["lora_alpha"] * stored.get("r", 0)
    return extra if extra > 0 and same and not stored.get("use_rslora") else 0


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes the whole model with its configuration and tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_model(model: nn.Module, folder: Path) -> None:
    """Reads a whole model into the existing weights, in place; refused as a whole unless everything fits."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json.", "Give the folder of a saved model.")
    try:
        with quiet():
            fresh, report = type(model).from_pretrained(  # type: ignore[attr-defined]
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(
            f"The weights in {folder} do not load into this model: {_first_line(error)}",
            "Give the folder of a model of the same architecture and size.",
        ) from error
    wrong = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
    if wrong:
        raise InputError(
            f"The weights in {folder} do not fit: {len(wrong)} names differ, first '{wrong[0]}'.",
            "Give the folder of a model of the same architecture and size.",
        )
    _require_same(model.state_dict(), fresh.state_dict(), f"The model in {folder}")
    copy_weights(fresh, model)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies every weight and persistent buffer of ``source`` into ``target`` in place; names and shapes must agree."""
    tensors = source.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            tensor.copy_(tensors[name])


def _require_same(own: dict[str, torch.Tensor], other: dict[str, torch.Tensor], what: str) -> None:
    """InputError unless both hold the same names with the same shapes."""
    names = sorted(own.keys() ^ other.keys())
    if names:
        side = "lacks" if names[0] in own else "has an unknown"
        raise InputError(
            f"{what} does not fit the model: {len(names)} names differ; it {side} '{names[0]}'.",
            "Load the model (and the LoRA targets) that it was made with.",
        )
    for name in sorted(own):
        if own[name].shape != other[name].shape:
            raise InputError(
                f"{what} does not fit the model: '{name}' has shape {tuple(other[name].shape)}, "
                f"the model wants {tuple(own[name].shape)}.",
                "Load the model (and the LoRA rank) that it was made with.",
            )


def _plain(value: Any) -> Any:
    """Sets and enumerations of a PEFT configuration as JSON has them."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].strip() if str(error).strip() else type(error).__name__
