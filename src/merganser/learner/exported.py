"""Answer with an exported model: a folder, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from merganser.checkpoints.source import SIDECAR_FILES
from merganser.config import RunConfig, check_config
from merganser.errors import InputError
from merganser.events import Listener, silent
from merganser.files.hub import hub_errors
from merganser.learner import inference
from merganser.learner.lineage import loaded_base
from merganser.learner.model_fingerprint import tokenizer_digest
from merganser.lineage import Lineage, read_lineage
from merganser.models.base import Answer, Backbone
from merganser.models.exported import FILE, ExportedRecord, read_record
from merganser.models.library_output import silence_libraries
from merganser.models.loading import load_backbone
from merganser.models.matcher import LabelMatcher
from merganser.models.model_card import LABEL_VECTORS
from merganser.models.options import ModelOptions
from merganser.streams.answers import CandidatePolicy
from merganser.streams.task import Task


@dataclass
class ExportedModel:
    """A model that was exported, with the tasks that it answers.

    :meth:`open` loads it, and :meth:`predict` answers texts as the run did from which it was exported::

        model = ExportedModel.open("owner/name")
        print(model.predict(["..."]))

    Attributes:
        name: as it was given.
        record: how it answers.
        lineage: what it was made from; ``None``: not recorded.
        backbone, config, candidates, listener: as of :class:`merganser.learner.session.Session`.
    """

    name: str
    record: ExportedRecord
    lineage: Lineage | None
    backbone: Backbone
    config: RunConfig
    candidates: CandidatePolicy
    listener: Listener

    @classmethod
    def open(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        model_path: str | None = None,
        listener: Listener = silent,
    ) -> ExportedModel:
        """Load a model that Merganser has exported.

        Args:
            name: its folder, or a hub id (``owner/name``, ``owner/name@revision``).
            revision: of a hub id: a task's name, a branch, a tag or a commit.
            model_path: of an adapter: where the pretrained model is, if not at the place in its lineage.
            listener: receives notices.

        Raises:
            InputError: there is no such export, it is damaged, or the pretrained model is another one or not found.
            RunError: the hub cannot be reached.
        """
        place = _locate(str(name), revision)
        record, lineage = read_record(place.folder), read_lineage(place.folder)
        config = _config(place, record, lineage, model_path)
        backbone = _load(place, record, config.model)
        if lineage is not None and record.holds == "adapter":
            lineage.check_base(loaded_base(backbone), tokenizer_digest(backbone), f"The adapter in '{name}'")
        _load_label_vectors(backbone, record, place.folder)
        candidates = CandidatePolicy(config.model.candidates, record.per_task_models)
        return cls(str(name), record, lineage, backbone, config, candidates, listener)

    @property
    def learned(self) -> list[str]:
        """Names of the tasks that it answers."""
        return list(self.record.tasks)

    def predict(self, texts: Sequence[str], task: str | None = None) -> list[Answer]:
        """Answer texts; see :func:`merganser.learner.inference.predict`."""
        return inference.predict(self, texts, task)

    def known_tasks(self) -> dict[str, Task]:
        """Return the tasks that it answers, without examples."""
        return {name: Task(name, train=(), spec=spec) for name, spec in self.record.tasks.items()}

    def require_learned(self) -> dict[str, Task]:
        """Return the tasks that it answers."""
        return self.known_tasks()

    def answered_by(self) -> dict[str, int]:
        """Return the one set of weights for every task."""
        return dict.fromkeys(self.record.tasks, 0)

    def use_task(self, name: str) -> None:
        """Do nothing: the weights that answer every task are in the model."""


@dataclass(frozen=True)
class _ExportLocation:
    """Where an export is.

    Attributes:
        name: as it was given, without a revision.
        folder: its files on this machine.
        commit: of a repository of the hub.
    """

    name: str
    folder: Path
    commit: str | None = None


def is_export(folder: Path) -> bool:
    """Return whether a folder was written by an export."""
    return (folder / FILE).is_file()


def _locate(name: str, revision: str | None) -> _ExportLocation:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not is_export(folder):
            raise InputError(f"'{name}' was not exported by Merganser: it has no {FILE}.", "Export it from its run.")
        return _ExportLocation(name, folder)
    repo, _, at = name.partition("@")
    folder = download(repo, revision or at or None)
    if not is_export(folder):
        raise InputError(
            f"The hub's '{name}' was not exported by Merganser: it has no {FILE}.",
            "Use it as a pretrained model (model.name), or push it from its run with `merganser push`.",
        )
    return _ExportLocation(repo, folder, folder.name)


def download(repo: str, revision: str | None) -> Path:
    """Download a repository of the hub without code and pickles; return its folder in the hub's cache.

    Raises:
        InputError: there is none, no such revision, no access, or no network is allowed and it is not in the cache.
        RunError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    at = f" at '{revision}'" if revision else ""
    with hub_errors(f"'{repo}'{at} cannot be read from the hub"), silence_libraries():
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.safetensors", *SIDECAR_FILES]))


def _config(
    place: _ExportLocation, record: ExportedRecord, lineage: Lineage | None, model_path: str | None
) -> RunConfig:
    """Return the configuration that the model is loaded with."""
    values = dict(record.model)
    if record.holds == "model":
        values |= {"name": str(place.folder), "revision": None, "lora": None, "weights": "auto"}
        if place.commit is not None:  # by its id: the files of the hub's cache are links
            values |= {"name": place.name, "revision": place.commit}
    elif model_path is not None:
        values |= {"name": model_path, "revision": None}
    elif lineage is not None and lineage.base.revision is not None:
        values["revision"] = lineage.base.revision
    return check_config({"model": values}, str(place.folder / FILE))


def _load(place: _ExportLocation, record: ExportedRecord, options: ModelOptions) -> Backbone:
    """Load the whole model, or the pretrained one with the adapter."""
    try:
        backbone = load_backbone(options, record.lengths, seed=0)
    except InputError as error:
        if record.holds == "model":
            raise
        raise InputError(
            f"The pretrained model of '{place.name}' cannot be loaded: {error.cause}",
            f"Say where it is (--model, or model_path from Python). {error.remedy}",
        ) from error
    if record.holds == "adapter":
        backbone.load_weights(place.folder)
    return backbone


def _load_label_vectors(backbone: Backbone, record: ExportedRecord, folder: Path) -> None:
    """Read a matcher's label vectors: a whole model cannot embed labels as the pretrained one did."""
    if not isinstance(backbone, LabelMatcher):
        return
    try:
        vectors = load_file(folder / LABEL_VECTORS)
        for name, spec in record.tasks.items():
            backbone.load_label_vectors(spec, vectors[name].to(backbone.device))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"'{folder / LABEL_VECTORS}' is damaged: {error}.", "Export or download it again.") from error
