"""Open checkpoints: a folder in Hugging Face layout, a single file, or a hub id."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.checkpoints.recipe import Recipe
from merganser.checkpoints.vocabularies.tied_names import tie_setting, tied_to
from merganser.errors import InputError
from merganser.files.documents import Malformed, parse_json, read_text
from merganser.files.hub import hub_failure
from merganser.files.safetensors_file import Tensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SIDECAR_FILES = (
    *("*.json", "*.txt", "*.jinja"),
    *("*.model", "*.model.v*", "*.tiktoken", "*.spm", "*.vocab", "*.bpe", "*.codes", "*.tokenizer"),
)
"""Patterns of files that belong to a model and hold neither weights nor code: config, settings, tokenizer."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that may be pickles."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
_FACTOR = re.compile(r"(^|\.)lora_([AB]|embedding_[AB]|magnitude_vector|up|down)(\.|$)")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model on disk.

    Attributes:
        label: as the user named it.
        folder: where its files are.
        shards: names of its safetensors files, in order.
        tensors: by name, in the order of the shards.
        metadata: of the first shard.
        config: ``config.json``, or an empty map.
    """

    label: str
    folder: Path
    shards: tuple[str, ...]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The location of a named model.

    Attributes:
        name: as the user gave it; a hub id with the commit that it resolved to (``owner/name@commit``).
        path: its file or folder on this machine.
        adapter: an adapter that is added to it (``BASE+ADAPTER``).
    """

    name: str
    path: Path
    adapter: Source | None = None


@dataclass(frozen=True)
class LocatedRecipe:
    """A recipe whose names are resolved: hub ids are pinned to a commit, so that the merge can be repeated.

    Attributes:
        recipe: with the names of the sources.
        models, fishers, base: where they are.
        tokenizer: the model or base whose tokenizer the result has; ``None``: that of the reference.
    """

    recipe: Recipe
    models: tuple[Source, ...]
    fishers: tuple[Source, ...]
    base: Source | None
    tokenizer: Source | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Sources of all models, Fishers and the base."""
        return (*self.models, *self.fishers, *([] if self.base is None else [self.base]))

    @property
    def has_adapter(self) -> bool:
        """Whether a model is a PEFT adapter, without a base."""
        return any(adapter_folder(source.path) is not None for source in self.models)

    @property
    def adds_adapter(self) -> bool:
        """Whether a model is a base with an adapter."""
        return any(source.adapter is not None for source in self.sources)


def locate_recipe(recipe: Recipe | LocatedRecipe) -> LocatedRecipe:
    """Resolve every name of a recipe once; a located recipe is returned unchanged.

    Raises:
        InputError: see :func:`locate`.
    """
    if isinstance(recipe, LocatedRecipe):
        return recipe
    names = [*recipe.names, *recipe.fishers, *([] if recipe.base is None else [recipe.base])]
    sources = {name: locate(name) for name in dict.fromkeys(names)}
    tokenizer = None if recipe.tokenizer_from is None else _input_named(recipe.tokenizer_from, recipe, sources)
    if tokenizer is not None:
        recipe = recipe.model_copy(update={"tokenizer_from": tokenizer})
    return LocatedRecipe(
        recipe.renamed({name: source.name for name, source in sources.items()}),
        tuple(sources[name] for name in recipe.names),
        tuple(sources[name] for name in recipe.fishers),
        None if recipe.base is None else sources[recipe.base],
        None if tokenizer is None else sources[tokenizer],
    )


def _input_named(name: str, recipe: Recipe, sources: Mapping[str, Source]) -> str:
    """Return the model or base that a name stands for: its own, or a path of the same folder."""
    inputs = [*recipe.names, *([] if recipe.base is None else [recipe.base])]
    path = Path(name).expanduser()
    for known in inputs:
        if name == known or (path.exists() and path.resolve() == sources[known].path.resolve()):
            return known
    raise InputError(
        f"The tokenizer is to be taken from {name} (--tokenizer-from), which is not merged.",
        f"Name one of the models: {', '.join(dict.fromkeys(inputs))}.",
    )


def locate(label: str) -> Source:
    """Find a model: a path, or a hub id (``name``, ``owner/name``, ``owner/name@revision``), which is downloaded.

    ``BASE+ADAPTER`` is a model with an adapter, each of them a path or a hub id.

    Raises:
        InputError: neither exists, or the folder holds a model and an adapter.
    """
    path = Path(label).expanduser()
    if os.path.exists(path):
        _refuse_two_models(label, path)
        return Source(label, path)
    if "+" in label:  # no hub id has one
        return _locate_with_adapter(label)
    name, _, revision = label.partition("@")
    looks_like_path = label.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path or not _HUB_ID.fullmatch(label):
        raise InputError(f"There is no file or folder {label}.", "Check the path.")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", *SIDECAR_FILES]
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        # The hub client raises many kinds of errors when a repository is unavailable.
        doing = f"'{label}' is not a file or folder, and cannot be downloaded from the hub"
        failure = hub_failure(error, doing)
        raise failure or InputError(f"{doing}: {_reason(error)}", "Check the name and the network.") from error
    if not any(folder.glob("*.safetensors")):
        _refuse_without_weights(label, name, revision or None, folder)
    _refuse_two_models(label, folder)
    # The hub's cache keeps every commit in a folder of its name.
    return Source(f"{name}@{folder.name}" if folder.parent.name == "snapshots" else label, folder)


def _locate_with_adapter(label: str) -> Source:
    """Find a base and the adapter after a ``+``; where the paths themselves have one, at that where both exist."""
    parts = label.split("+")
    splits = [("+".join(parts[:number]), "+".join(parts[number:])) for number in range(len(parts) - 1, 0, -1)]
    if not all(all(split) for split in splits):
        raise InputError(f"{label} has nothing before or after a '+'.", "Write BASE+ADAPTER.")

    def existing(split: tuple[str, str]) -> int:
        return sum(os.path.exists(Path(part).expanduser()) for part in split)

    base, adapter = (locate(part) for part in max(splits, key=existing))
    if base.adapter is not None or adapter_folder(base.path) is not None:
        raise InputError(f"{label} names more than one adapter.", "Merge the adapters first, and add the result.")
    if adapter_folder(adapter.path) is None:
        raise InputError(
            f"{adapter.name} (after the '+') is not an adapter: it has no {ADAPTER_CONFIG}.", "Write BASE+ADAPTER."
        )
    return Source(f"{base.name}+{adapter.name}", base.path, adapter)


def _refuse_two_models(label: str, folder: Path) -> None:
    """Refuse a folder that holds a model and an adapter; the file of either can be named instead."""
    if (folder / ADAPTER_CONFIG).is_file() and holds_whole_model(folder):
        raise InputError(
            f"{label} holds a model and an adapter ({ADAPTER_CONFIG}): it is not clear which is meant.",
            f"For the adapter, name its file ({folder / ADAPTER_WEIGHTS}); for the model, move {ADAPTER_CONFIG} and "
            f"{ADAPTER_WEIGHTS} to a folder of their own.",
        )


def holds_whole_model(folder: Path) -> bool:
    """Return whether a folder holds the weights of a model, in files named as transformers names them."""
    names = (SINGLE, INDEX, "model-*-of-*.safetensors", "pytorch_model*.bin", "pytorch_model*.bin.index.json")
    return any(path.is_file() for name in names for path in folder.glob(name))


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return first if first.endswith(".") else f"{first}."


def _refuse_without_weights(label: str, name: str, revision: str | None, folder: Path) -> None:
    """Explain why a repository has no safetensors file: it holds pickles only, or no weights at all."""
    from huggingface_hub import list_repo_files

    pinned = f", revision='{revision}'" if revision else ""
    short = name.rpartition("/")[2]
    convert = f"M.from_pretrained('{name}'{pinned}).save_pretrained('{short}-safetensors')"
    command = f'python -c "from transformers import AutoModelForCausalLM as M; {convert}"'
    files = [path.name for path in folder.iterdir()]
    if _pickled_weights(files) is None:
        try:
            files = list_repo_files(name, revision=revision)
        except Exception as error:
            raise InputError(
                f"{label} has no safetensors file in the cache, and the hub cannot be reached: {_reason(error)}",
                f"Try again with a network. If it holds pickles only, convert it first: {command}",
            ) from error
    pickled = _pickled_weights(files)
    if pickled is None:
        raise InputError(f"{label} holds no safetensors file.", f"A checkpoint has {SINGLE} or {INDEX}.")
    if pickled == "adapter_model.bin":
        at = f" --revision {revision}" if revision else ""
        command = f"hf download {name}{at} --local-dir {short} && {_conversion_command(Path(short) / pickled)}"
    raise InputError(
        f"{label} holds its weights as a pickle only ({pickled}), which can run code when it is read.",
        f"Convert it first, and merge the new folder: {command}",
    )


def _pickled_weights(names: Iterable[str]) -> str | None:
    """Return the file that most likely holds weights as a pickle, or ``None``."""
    other = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
    pickled = [name for name in names if name.endswith(PICKLES) and not name.startswith(other) and "/" not in name]
    return min(pickled, key=lambda name: (not name.startswith(("pytorch_model", "adapter_model")), name), default=None)


def adapter_folder(path: Path) -> Path | None:
    """Return the folder of a PEFT adapter, from that folder or its weights file; ``None`` for other paths."""
    folder = path.parent if path.is_file() and path.name == ADAPTER_WEIGHTS else path
    return folder if folder.is_dir() and (folder / ADAPTER_CONFIG).is_file() else None


def open_checkpoint(source: Source | str) -> Checkpoint:
    """Read the headers of a checkpoint; no tensor is read.

    Args:
        source: where it is, or a name to :func:`locate`.

    Raises:
        InputError: no checkpoint there, pickle files only, missing shards, an index that does not match its shards, a
            truncated file, the factors of an adapter in place of weights.
    """
    source = locate(source) if isinstance(source, str) else source
    checkpoint = _open_path(source.name, source.path)
    factor = next((name for name in checkpoint.tensors if _FACTOR.search(name)), None)
    if factor is not None:
        raise InputError(
            f"{source.name} holds factors of an adapter ({factor}), which cannot be merged as single tensors.",
            f"Give adapters as folders with {ADAPTER_CONFIG} beside {ADAPTER_WEIGHTS}, and merge them with adapters "
            "only; or add it to its model first (merge_and_unload of PEFT).",
        )
    return checkpoint


def _open_path(label: str, path: Path) -> Checkpoint:
    if path.is_file():
        refuse_pickle(path)
        tensors, metadata = read_header(path)
        return Checkpoint(label, path.parent, (path.name,), {t.name: t for t in tensors}, metadata, {})
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "quantization_config" in config:
        raise InputError(
            f"{label} holds quantised weights (quantization_config in its config.json).",
            "Merge the weights it was made from, then quantise the result.",
        )
    if (path / INDEX).is_file():
        return _open_sharded(label, path, config)
    name = SINGLE if (path / SINGLE).is_file() else _only_file(label, path)
    tensors, metadata = read_header(path / name)
    return Checkpoint(label, path, (name,), {t.name: t for t in tensors}, metadata, config)


def _open_sharded(label: str, folder: Path, config: dict[str, Any]) -> Checkpoint:
    index = read_json(folder / INDEX)
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise InputError(f"{folder / INDEX} has no weight_map.", "Download or save the checkpoint again.")
    shards = tuple(sorted(set(placed.values())))
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{folder / INDEX} names a shard outside its folder: {shard}.", "Use shards beside it.")
    missing = [shard for shard in shards if not os.path.isfile(folder / shard)]
    if missing:
        raise InputError(f"{label} lacks {len(missing)} of its shards: {_shorten(missing)}.", "Download them again.")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for shard in shards:
        in_shard, shard_metadata = read_header(folder / shard)
        metadata = metadata or shard_metadata
        for tensor in in_shard:
            if placed.get(tensor.name) != shard:
                raise InputError(
                    f"{folder / shard} holds {tensor.name}, which the index places in {placed.get(tensor.name)}.",
                    "The index and the shards are of different versions: download them again.",
                )
            tensors[tensor.name] = tensor
    absent = sorted(set(placed) - set(tensors))
    if any(tied_to(name, tensors, True) for name in absent):
        # Some writers list all names of tied weights and store one of them; transformers ties the others to it.
        tied = tie_setting(config) is True
        absent = [name for name in absent if not tied_to(name, tensors, tied)]
    if absent:
        raise InputError(
            f"The shards of {label} lack tensors of the index: {_shorten(absent)}.", "Download them again."
        )
    return Checkpoint(label, folder, shards, tensors, metadata, config)


def _only_file(label: str, folder: Path) -> str:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise InputError(
            f"{label} has {len(files)} safetensors files and no {INDEX}.", "Add the index, or name one of the files."
        )
    pickled = _pickled_weights(path.name for path in folder.iterdir())
    if pickled is not None:
        refuse_pickle(folder / pickled)
    raise InputError(f"{label} holds no safetensors file.", f"A checkpoint is a folder with {SINGLE} or {INDEX}.")


def refuse_pickle(path: Path) -> None:
    """Refuse a pickle with the command that converts it; other files pass.

    Raises:
        InputError: the file's ending is that of a pickle.
    """
    if path.suffix not in PICKLES:
        return
    raise InputError(
        f"{path} is a pickle, which can run code when it is read.", f"Convert it first: {_conversion_command(path)}"
    )


def _conversion_command(path: Path) -> str:
    """Return the command that converts a pickle to safetensors."""
    if path.name.startswith("pytorch_model"):
        code = (
            "import sys; from transformers import AutoModelForCausalLM as M; "
            "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
        )
        return shlex.join(["python", "-c", code, str(path.parent), f"{path.parent}-safetensors"])
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])"
    )
    return shlex.join(["python", "-c", code, str(path), str(path.with_suffix(".safetensors"))])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        content = parse_json(read_text(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    except Malformed as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.", "Download or save it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object.", "Download or save it again.")
    return content


def _shorten(names: list[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
