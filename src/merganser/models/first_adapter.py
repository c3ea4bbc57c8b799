"""An adapter to begin with (``model.adapter``): its options are those of the run, and its factors are trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser.checkpoints.adapters.source import PREFIX, refuse_variants, same_base
from merganser.checkpoints.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_folder, locate, read_json
from merganser.errors import InputError
from merganser.files.digests import file_digest
from merganser.files.safetensors_file import Tensor, read_header
from merganser.lineage import told_by_hash
from merganser.models.options import LoraOptions, ModelOptions
from merganser.models.source import ModelSource, holds_model

MERGE = "To train other factors, put it into its base first: merganser merge BASE+ADAPTER --out FOLDER."

OF_ITS_OWN = ("rank_pattern", "alpha_pattern", "modules_to_save", "exclude_modules", "layers_to_transform")
"""Keys of an adapter's configuration for layers that differ from the others."""

DEFAULTS = LoraOptions()


def find_adapter(options: ModelOptions) -> Path | None:
    """Return the folder of the adapter to begin with; ``None`` without one.

    Raises:
        InputError: there is no adapter.
    """
    if options.adapter is None:
        return None
    folder = adapter_folder(locate(options.adapter).path)
    if folder is None or not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(
            f"{options.adapter} (model.adapter) holds no adapter.",
            f"Give a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}.",
        )
    return folder


def with_base_named(options: ModelOptions) -> ModelOptions:
    """Return options whose ``name`` is a model: where it was an adapter, its base, and the adapter to begin with.

    An adapter that does not say where its base is stays, as does what cannot be read: loading it is the error.
    """
    path = Path(options.name).expanduser()
    if options.adapter is not None or options.lora is None or path.is_file() or path.suffix.lower() == ".gguf":
        return options
    if not path.is_dir() and (path.is_absolute() or options.name.startswith(".") or options.name.count("/") > 1):
        return options  # no such folder
    source = ModelSource(options.name, str(path) if path.is_dir() else options.name, options.revision)
    try:
        file = source.file(ADAPTER_CONFIG)
        if file is None or holds_model(source):
            return options
    except InputError:
        return options
    config = read_json(file)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base.strip("/ ") or base.startswith("./"):
        return options
    adapter = options.name if options.revision is None else f"{options.name}@{options.revision}"
    at = revision if isinstance(revision, str) and not Path(base).expanduser().exists() else None
    return options.model_copy(update={"name": base, "revision": at, "adapter": adapter})


def adapter_digest(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights."""
    return file_digest(folder / ADAPTER_WEIGHTS)


def with_options_of(folder: Path, options: ModelOptions) -> ModelOptions:
    """Return the options with rank, scaling and layers of an adapter in place of defaults.

    Raises:
        InputError: the adapter is of another base, is no plain LoRA or DoRA of one rank, or an option that was given
            is another one.
    """
    label, config = str(options.adapter), read_json(folder / ADAPTER_CONFIG)
    refuse_variants(label, {**config, "use_dora": False})
    if key := next((key for key in OF_ITS_OWN if config.get(key)), None):
        raise InputError(f"{label} (model.adapter) has {key}, so its layers differ.", MERGE)
    if config.get("bias", "none") != "none":
        raise InputError(f"{label} (model.adapter) has trained biases (bias: {config['bias']}).", MERGE)
    _check_base(folder, config, options)
    header = read_header(folder / ADAPTER_WEIGHTS)[0]
    if whole := next((tensor for tensor in header if ".lora_" not in tensor.name), None):
        rows = f" of {whole.shape[0]} rows" if len(whole.shape) == 2 else ""
        raise InputError(
            f"{label} (model.adapter) holds whole weights, such as {whole.name}{rows}: it was trained with tokens or "
            "layers of its own.",
            MERGE,
        )
    given = options.lora or DEFAULTS
    of_adapter = {
        "r": config.get("r", 8),
        "alpha": config.get("lora_alpha", 8),
        "rslora": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
        "targets": _targets(config, header),
    }
    for key, value in of_adapter.items():
        asked = getattr(given, key)
        same = set(asked) == set(value) if isinstance(asked, list) else asked in (value, getattr(DEFAULTS, key))
        if not same:
            raise InputError(
                f"model.lora.{key} is {asked}, and the adapter {label} has {value}.",
                f"Omit it: an adapter is trained on with its own. {MERGE}",
            )
    return options.model_copy(update={"lora": LoraOptions(**of_adapter, dropout=given.dropout)})


def _targets(config: Mapping[str, Any], header: Sequence[Tensor]) -> list[str]:
    """Return the endings of the layers' names in the configuration; where it has a pattern, the whole names."""
    targets = config.get("target_modules")
    if isinstance(targets, list) and targets:
        return sorted(map(str, targets))
    return sorted({tensor.name.split(".lora_")[0].removeprefix(PREFIX) for tensor in header})


def _check_base(folder: Path, config: Mapping[str, Any], options: ModelOptions) -> None:
    """Refuse an adapter that names another base than the model; a hash, where it has one, is compared later."""
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip("/ ") or told_by_hash(folder, base):
        return
    file = Path(options.name)
    names = [options.name, file.stem] if file.suffix.lower() == ".gguf" else [options.name]
    if not any(same_base(base, name) for name in names):
        raise InputError(
            f"The adapter {options.adapter} was trained on {base} (base_model_name_or_path), not on {options.name}.",
            f"Give that model. If both are the same, write {options.name} into {ADAPTER_CONFIG}.",
        )
