"""Where a model comes from, as hashes: its base, tokenizer, quantisation, data and trained weights.

Every row of a run has a :class:`Lineage`, and so has every export (``lineage.json``), with the tasks of all rows before
it. An adapter is loaded on the base of its lineage only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merganser.errors import InputError
from merganser.files.atomic import json_bytes
from merganser.files.digests import combine, file_digest, tensor_digests
from merganser.files.documents import Malformed, parse_json, read_text

FILE = "lineage.json"
"""Its name in the folder of an export."""

FORMAT = 1
"""Version of the record; one with a larger number is refused."""

PLACEHOLDER = "./base/"
"""Beginning of the name of a model that is not on the hub: a place beside the program that loads the adapter.

No hub id begins so: nobody can register the name and have other weights loaded.
"""

DIGITS = 12
"""Hexadecimal digits of a hash that a message shows."""


class LineageRecord(BaseModel):
    """Base of the records: unknown keys are an error, so that a damaged file is noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelLineage(LineageRecord):
    """The pretrained model."""

    name: str = Field(
        description="hub id, folder or .gguf file as configured; of an export a hub id or a folder's name"
    )
    revision: str | None = Field(None, description="the hub's commit; None: a folder or a file")
    sha256: str = Field(description="of every byte of its weights, and of its configuration")

    @property
    def described(self) -> str:
        """Return name and the first digits of the hash, for messages."""
        return f"'{self.name}' ({self.sha256[:DIGITS]})"


class SplitLineage(LineageRecord):
    """The examples of a part of a task, as they were read."""

    rows: int
    sha256: str = Field(description="of inputs and answers in order, prompt applied")


class TaskLineage(LineageRecord):
    """The data of a task."""

    task: str
    row: int = Field(description="row of the score matrix in which it was learned")
    files: dict[str, str] = Field(
        default_factory=dict, description="where each part came from: names of files with the SHA-256 of their bytes"
    )
    splits: dict[str, SplitLineage] = Field(
        default_factory=dict, description="train, dev, test, as far as there are any"
    )


class Parent(LineageRecord):
    """A model that a merge was made from, or the adapter that a run began with."""

    name: str = Field(description="hub id with commit, or a folder's name")
    weights: str = Field("", description="SHA-256 of its trained weights; empty: it has no lineage")


class Lineage(LineageRecord):
    """Hashes of everything that a model was made from."""

    format: int = FORMAT
    base: BaseModelLineage
    tokenizer: str = Field(description="SHA-256 of vocabulary, special tokens and chat template; empty: none of texts")
    quantisation: str = Field("none", description="of the base's weights in training, such as nf4; none: not quantised")
    data: list[TaskLineage] = Field(default_factory=list, description="of a row its own tasks, of an export all so far")
    weights: str = Field(
        description="SHA-256 of the trained weights in the run: the adapter's file, or the whole model"
    )
    holds: str = Field("adapter", description="adapter, or model: all weights")
    parents: list[Parent] = Field(default_factory=list, description="of a merge; the adapter that a run began with")
    files: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of the other files of an export but its card, by name"
    )

    def check_base(self, other: BaseModelLineage, tokenizer: str, what: str) -> None:
        """Refuse another base, or another tokenizer.

        Args:
            other: the base that was loaded.
            tokenizer: hash of the tokenizer that was loaded.
            what: has this lineage, as a message begins.

        Raises:
            InputError: naming both.
        """
        if other.sha256 != self.base.sha256:
            raise InputError(
                f"{what} was trained on {self.base.described}, and {other.described} is another model.",
                "Give the pretrained model that it was trained on.",
            )
        if self.tokenizer and tokenizer != self.tokenizer:
            raise InputError(
                f"{what} was trained with the tokenizer {self.tokenizer[:DIGITS]} of '{self.base.name}', and that of "
                f"'{other.name}' is another one ({tokenizer[:DIGITS] or 'none'}).",
                "Give the model with the files of its tokenizer as they were.",
            )


INCIDENTAL = ("_name_or_path", "transformers_version", "transformers_weights", "architectures", "dtype", "torch_dtype")
"""Keys of a configuration that do not change what a model computes in fp32."""


def model_digest(weights: Iterable[Path], config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a model: every byte of its tensors, however they are divided into files, and its settings.

    Args:
        weights: its safetensors files.
        config: its ``config.json``.

    Raises:
        InputError: a file is damaged.
    """
    content = {key: value for key, value in config.items() if key not in INCIDENTAL}
    of_config = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return combine([*(pair for path in weights for pair in tensor_digests(path).items()), ("config.json", of_config)])


def weights_digest(files: Mapping[str, str]) -> str:
    """Return one hash of trained weights: that of their file, or of several combined.

    Args:
        files: SHA-256 by name; only safetensors files count.
    """
    weights = {name: digest for name, digest in files.items() if name.endswith(".safetensors")}
    return next(iter(weights.values())) if len(weights) == 1 else combine(weights.items())


def write_lineage(folder: Path, lineage: Lineage, *, without: tuple[str, ...] = ()) -> Lineage:
    """Write ``lineage.json`` of an exported folder, with the hashes of the other files in it.

    Weights without a hash, as those of a merge, get that of their files.

    Args:
        folder: complete but for this file.
        without: names of files that people edit.

    Returns:
        What was written.
    """
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = sorted(name for name in paths if name not in (FILE, *without))
    files = {name: file_digest(folder / name) for name in names}
    lineage = lineage.model_copy(update={"files": files, "weights": lineage.weights or weights_digest(files)})
    (folder / FILE).write_bytes(json_bytes(lineage.model_dump()))
    return lineage


def told_by_hash(folder: Path, base: str) -> bool:
    """Return whether an adapter's base is known by its hash in ``lineage.json``, and its name is a placeholder.

    Args:
        folder: of the adapter.
        base: ``base_model_name_or_path`` in its configuration.

    Raises:
        InputError: the lineage is damaged.
    """
    return base.startswith(PLACEHOLDER) and read_lineage(folder) is not None


def read_lineage(folder: Path) -> Lineage | None:
    """Read the ``lineage.json`` of a folder; ``None``: it has none.

    Raises:
        InputError: the file is damaged, or a newer version wrote it.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = parse_json(read_text(path))
        if isinstance(content, dict) and isinstance(written := content.get("format"), int) and written > FORMAT:
            raise InputError(
                f"'{path}' was written by a newer version (format {written}; this version reads {FORMAT}).",
                "Upgrade: pip install --upgrade merganser.",
            )
        return Lineage.model_validate(content)
    except (Malformed, ValidationError, OSError) as error:
        raise InputError(f"'{path}' is damaged: {_reason(error)}.", "Export or download the model again.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
