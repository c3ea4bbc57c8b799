"""Find the files of a pretrained model; refuse folders that are ambiguous, lead elsewhere or would run code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.checkpoints.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, SINGLE, holds_whole_model, read_json
from merganser.errors import InputError, first_line, mark_missing_model
from merganser.files.hub import hub_failure, is_offline
from merganser.files.links import leads_outside
from merganser.models.options import ModelOptions

CONFIG = "config.json"

PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Weight files that run code when they are read."""

TEXT_FILES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".vocab", ".bpe")
"""Endings of files whose content goes from a model into its exports."""


@dataclass(frozen=True)
class ModelSource:
    """The location of a pretrained model.

    Attributes:
        name: as configured.
        location: the folder or hub id to load from.
        revision: of a hub id.
        gguf: the file that the folder was converted from.
    """

    name: str
    location: str
    revision: str | None = None
    gguf: Path | None = None

    def file(self, name: str, *, downloaded: bool = False) -> Path | None:
        """Return a file of the model, downloaded if it is on the hub; ``None`` if the model does not have it.

        Args:
            name: of the file.
            downloaded: of a model of the hub, look in its cache only: the model was read before.

        Raises:
            InputError: the hub cannot be read.
        """
        if Path(self.location).is_dir():
            path = Path(self.location) / name
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from huggingface_hub.errors import HTTPError as TransportError

        try:
            revision = self.revision or "main"
            return Path(hf_hub_download(self.location, name, revision=revision, local_files_only=downloaded))
        except (OSError, ValueError, TransportError) as error:
            # A file that could not be asked for is one of these errors, too: whether it exists is not known then.
            unknown = isinstance(error, LocalEntryNotFoundError) and not downloaded and not self._is_cached()
            if isinstance(error, EntryNotFoundError) and not unknown:
                return None
            failure = hub_failure(error, f"{name} of the model {self.name} cannot be read from the hub")
            raise failure or InputError(
                f"{name} of the model {self.name} could not be read from the hub: {first_line(error)}",
                "Check the name, the network and, for a gated model, your access; or give a folder.",
            ) from error

    def _is_cached(self) -> bool:
        """Return whether the model was read before, so that the hub's cache has the files it consists of."""
        return is_offline() or self.file(CONFIG, downloaded=True) is not None

    def folder(self) -> Path:
        """Return the folder that the files of a model are in, which was read before."""
        config = self.file(CONFIG, downloaded=True)
        return Path(self.location) if config is None else config.parent

    def check_weights(self) -> None:
        """Refuse weights that would be read from elsewhere, or from files that run code.

        Of a model of the hub, files that an index names are not downloaded here: transformers fetches them in parallel.

        Raises:
            InputError: no weights; an index that names a pickle, a file outside the folder or, in a folder, one that
                is not there.
        """
        names = self._weight_names(downloaded=False)
        if Path(self.location).is_dir():
            self._require(names)

    def weight_files(self) -> list[Path]:
        """Return the safetensors files that hold the weights of a model that was read before.

        Raises:
            InputError: as :meth:`check_weights`; a file that is not there.
        """
        return self._require(self._weight_names(downloaded=True))

    def _weight_names(self, *, downloaded: bool) -> list[str]:
        """Return the names of the files with the weights, each a safetensors file beside the configuration."""
        config = self.file(CONFIG, downloaded=downloaded)
        explicit = None if config is None else read_json(config).get("transformers_weights")
        for name in (SINGLE, INDEX) if explicit is None else (explicit,):
            _check_file_name(name, f"{CONFIG} of {self.name} (transformers_weights)")
            path = self.file(name, downloaded=downloaded)
            if path is not None:
                return _names_in_index(path) if path.name.endswith(".json") else [name]
        raise InputError(
            f"The model {self.name} holds no weights ({explicit or SINGLE}).",
            "Give a folder as saved by transformers.",
        )

    def _require(self, names: list[str]) -> list[Path]:
        paths = {name: self.file(name, downloaded=True) for name in names}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise InputError(
                f"The model {self.name} lacks {len(missing)} of its weight files, first {missing[0]}.",
                "Download or copy them again.",
            )
        return [path for path in paths.values() if path is not None]


def _names_in_index(index: Path) -> list[str]:
    """Return the names of the files in an index, sorted."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise InputError(f"{index} has no weight_map.", "Download or save the model again.")
    for name in placed.values():
        _check_file_name(name, str(index))
    return sorted(set(placed.values()))


def _check_file_name(name: Any, where: str) -> None:
    """Refuse what is not the name of a safetensors file, or of an index of such, in the model's own folder."""
    if not isinstance(name, str) or Path(name).name != name or "\\" in name:
        raise InputError(f"{where} names a weight file outside its folder: {name!r}.", "Put the weights beside it.")
    if not name.endswith((".safetensors", ".safetensors.index.json")):
        raise InputError(
            f"{where} names {name!r}, which is not a safetensors file and may run code when it is read.",
            "Save the model again as safetensors in an environment where you trust the file.",
        )


def resolve_source(options: ModelOptions) -> ModelSource:
    """Return the folder or hub id to load from; a .gguf file is converted to a folder first.

    Raises:
        InputError: there is no such file or folder, or the folder is refused (:func:`check_folder`).
    """
    name = options.name
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        from merganser.models.gguf_file import convert_gguf

        return ModelSource(name, str(convert_gguf(path)), gguf=path)
    if os.path.isdir(path):
        check_folder(path, name)
        return ModelSource(name, str(path))
    looks_like_path = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name
    if os.path.exists(path) or looks_like_path:
        problem = "is not a folder" if os.path.exists(path) else "does not exist"
        error = InputError(
            f"The model {name} {problem}.", "Give a folder as saved by transformers, a .gguf file or a hub id."
        )
        raise error if os.path.exists(path) else mark_missing_model(error)
    return ModelSource(name, name, options.revision)


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that transformers would read otherwise than it looks, or from elsewhere.

    Raises:
        InputError: no model; an adapter, alone or beside a model; weights in pickles only, or an index that names one
            or leads outside; a text file that is a link to outside the folder.
    """
    source = ModelSource(name, str(folder))
    refuse_adapter(source)
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"The folder {name} holds no model: it has no config.json.", "Give a folder as saved by transformers."
        )
    _refuse_links(folder, name)
    if not any(folder.glob("*.safetensors")):
        pickles = [file for file in PICKLE_FILES if (folder / file).is_file()]
        if pickles:
            raise InputError(
                f"The model {name} has its weights only in {pickles[0]}, a pickle file, which can run code when read.",
                "Save it again as safetensors: model.save_pretrained(folder) in an environment where you trust it.",
            )
        if not (folder / INDEX).is_file():
            raise InputError(
                f"The folder {name} holds no weights (*.safetensors).", "Give a folder as saved by transformers."
            )
    source.check_weights()


def refuse_adapter(source: ModelSource) -> None:
    """Refuse a model that comes with an adapter, which transformers would load into it without a word.

    Raises:
        InputError: there is an ``adapter_config.json``.
    """
    config = source.file(ADAPTER_CONFIG)
    if config is None:
        return
    if holds_model(source):
        raise InputError(
            f"{source.name} holds a model and an adapter ({ADAPTER_CONFIG}): it is not clear which weights are meant.",
            f"Move {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} to a folder of their own; to begin with the adapter, name "
            "that folder under model.adapter.",
        )
    base = read_json(config).get("base_model_name_or_path")
    of_base = f" (of {base})" if isinstance(base, str) and base else ""
    raise InputError(
        f"{source.name} holds an adapter{of_base}, not a model.",
        "Give the model as model.name; to begin with the adapter in it, name this folder under model.adapter.",
    )


def holds_model(source: ModelSource) -> bool:
    """Return whether there is a model, perhaps beside an adapter; of a hub id only the configuration is asked for."""
    folder = Path(source.location)
    if not folder.is_dir():
        return source.file(CONFIG) is not None
    return holds_whole_model(folder)


def _refuse_links(folder: Path, name: str) -> None:
    """Refuse text files that are links to outside the folder: exports would hold content from there.

    Weights hold numbers only and may be anywhere.
    """
    templates = folder / "additional_chat_templates"
    for path in [*folder.iterdir(), *(templates.iterdir() if templates.is_dir() else ())]:
        if path.suffix in TEXT_FILES and path.is_file() and leads_outside(path, folder):
            raise InputError(
                f"{path.name} of the model {name} is a link to {path.resolve()}, outside its folder.",
                "If you trust it, put a copy of the file in place of the link.",
            )
