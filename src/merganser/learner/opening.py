"""Start a run, or reopen one: check that options and model are those it was started with, and load them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from merganser import processes
from merganser.config import RunConfig, check_config, differences
from merganser.errors import InputError
from merganser.events import Listener, Notice
from merganser.learner.lineage import check_base, loaded_base
from merganser.learner.model_fingerprint import fingerprint, hub_commit, tokenizer_digest
from merganser.learner.reporting import report_to_trackers
from merganser.learner.session import Session
from merganser.learner.trackers import check_trackers
from merganser.lineage import read_lineage
from merganser.models.base import Backbone
from merganser.models.base_card import base_card
from merganser.models.causal import Causal
from merganser.models.engines import make_engine
from merganser.models.first_adapter import adapter_digest, with_base_named
from merganser.models.loading import load_backbone, resolve_lengths
from merganser.models.options import LoraOptions
from merganser.models.weight_format import require_bitsandbytes
from merganser.runs.directory import RunDirectory
from merganser.runs.record import RunInfo
from merganser.runs.rows import row_folders
from merganser.runs.versions import versions
from merganser.training.determinism import derive_seed
from merganser.training.options import WITHOUT_BITSANDBYTES


def plain_values(value: Any) -> Any:
    """Return an options object as the values of a YAML file; other values as they are."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def start(path: Path, config: RunConfig, listener: Listener, command: str) -> Session:
    """Load the model and start a run in a new or empty folder.

    Raises:
        InputError: the folder holds something else or cannot be written, or the model cannot be loaded.
    """
    RunDirectory.check_new(path)
    _check_packages(config)
    config = _with_base_named(config)
    if config.model.adapter is not None:
        listener(Notice(f"The run begins with the adapter '{config.model.adapter}' on '{config.model.name}'."))
    # The model comes before the folder: if it is not there, nothing is left behind.
    backbone = processes.run_collectively(lambda: _check_adapter(_load_backbone(config, {})))
    info = RunInfo(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        seed=config.seed,
        processes=processes.world_size(),
        config={**config.model_dump(mode="json"), "resolved": _resolved(backbone)},
        versions=versions(backbone.device),
    )
    return report_to_trackers(Session(RunDirectory.create(path, info), config, backbone, listener))


NOWHERE = Path(os.devnull) / "run"
"""A run directory that cannot be there."""


def preview(path: Path | None, config: RunConfig | None, listener: Listener) -> Session:
    """Return a session for a plan: of a run, read-only, or of one that is not there. Nothing is written.

    Args:
        path: of the run, which is used if it has learned anything.
        config: ``None``: that of the run.

    Raises:
        InputError: as :func:`start` or :func:`reopen`.
    """
    if path is not None and RunDirectory.exists(path) and (config is None or len(row_folders(path / "tasks")) > 1):
        given = {} if config is None else config.model_dump(mode="json", exclude={"stream"})
        return reopen(path, given, listener, read_only=True)
    if config is None:
        raise InputError(f"There is no run in '{path}'.", "Start one with `merganser run`, or give a configuration.")
    if path is not None and not RunDirectory.exists(path):
        RunDirectory.check_new(path)
    _check_packages(config)
    backbone = _check_adapter(_load_backbone(config, {}))
    info = RunInfo(created="", command="", seed=config.seed, config=config.model_dump(mode="json"), versions={})
    return Session(RunDirectory(NOWHERE, info), config, backbone, listener)


def start_over(path: Path, config: RunConfig, listener: Listener) -> bool:
    """Delete a run that was started with other options and has learned nothing; whether that was done."""
    directory = processes.run_collectively(lambda: RunDirectory.open(path))
    if directory.has_learned() or not _changes(_stored_config(directory), config):
        return False
    if foreign := directory.foreign_files():
        raise InputError(
            f"'{path}' has learned nothing yet and would start over with the new configuration, but "
            f"{', '.join(foreign[:5])} in it {'is' if len(foreign) == 1 else 'are'} not of the run.",
            "Move them elsewhere, or choose a new folder.",
        )
    directory.lock.acquire()
    processes.on_main(directory.discard)
    listener(Notice(f"'{path}' had learned nothing yet; it starts over with the new configuration."))
    return True


def reopen(
    path: Path,
    given: Mapping[str, Any],
    listener: Listener,
    *,
    read_only: bool = False,
    model_path: str | None = None,
    row: str | None = None,
) -> Session:
    """Open an existing run as it is after its last row.

    Args:
        given: sections that must be as when the run was started, apart from options that may change.
        read_only: do not lock or repair the run.
        row: as it was after this row instead: a folder of ``tasks/``, a task learned in it, or a tag; for reading.
        model_path: where the pretrained model is now, if it was moved.

    Raises:
        InputError: an option or the model differs, or the run is damaged, in use, or of a newer version.
    """
    directory = processes.run_collectively(lambda: RunDirectory.open(path))
    config = _stored_config(directory)
    requested = {key: value for key, value in given.items() if key != "stream"}
    wanted = check_config({**config.sections(), **requested}, "options")
    if changed := _changes(config, wanted):
        raise InputError(
            f"The run '{path}' was started differently: {'; '.join(changed)}.",
            "Use the same configuration to continue it, or another folder for a new run.",
        )
    if "training" in requested:
        config = config.with_changes_of(wanted)
    if wanted.runs.keep_weights != "auto":
        config = config.model_copy(update={"runs": wanted.runs})
    if row is not None:
        if not read_only:
            raise InputError("An earlier row is opened for reading only.", "Open it with read_only=True.")
        directory = directory.up_to(row)
    if not read_only:
        _check_packages(config)
        directory.lock.acquire()
    try:
        notes = [] if read_only else directory.repair()
        session = processes.run_collectively(lambda: _load_session(directory, config, listener, model_path))
        if not read_only:
            processes.run_collectively(lambda: _read_examples(session))
    except BaseException:
        directory.lock.release()
        raise
    learned = session.learned
    if learned and not read_only:
        listener(Notice(f"Continuing '{path}' after {len(learned)} learned task(s): {', '.join(learned)}."))
    for note in notes:
        listener(Notice(note))
    return session if read_only else report_to_trackers(session)


def _changes(stored: RunConfig, wanted: RunConfig) -> list[str]:
    """Return how a configuration differs from that of a run."""
    if stored.model.adapter is not None and wanted.model.name != stored.model.name:
        wanted = _with_base_named(wanted)
    return differences(stored.sections(), wanted.sections())


def _with_base_named(config: RunConfig) -> RunConfig:
    """Return a configuration whose model is none of an adapter alone."""
    named = processes.run_collectively(lambda: with_base_named(config.model))
    return config.model_copy(update={"model": named})


def _check_packages(config: RunConfig) -> None:
    """Refuse options whose packages are not installed."""
    check_trackers(config.training.report_to)
    if config.training.optimizer not in WITHOUT_BITSANDBYTES:
        require_bitsandbytes(f"training.optimizer: {config.training.optimizer}")


def _stored_config(directory: RunDirectory) -> RunConfig:
    stored = {key: value for key, value in directory.info.config.items() if key != "resolved"}
    stored.setdefault("runs", {"keep_weights": "all"})  # nobody has been told that weights would be removed
    return check_config(stored, str(directory.path / "run.yaml"))


def _read_examples(session: Session) -> None:
    """Read the memory and the test sets, so that damage is noticed now and later tasks read nothing again."""
    session.memory()
    session.known_tasks()
    session.watched()


def _load_session(directory: RunDirectory, config: RunConfig, listener: Listener, model_path: str | None) -> Session:
    """Load the run's model and method, as they are after its last row."""
    # What `auto` resolved to where the run was started is kept on every machine.
    resolved = directory.info.config.get("resolved", {})
    kept: dict[str, Any] = {
        "precision": resolved.get("precision", config.model.precision),
        "weights": resolved.get("weights", "fp32"),
    }
    begun = bool(row_folders(directory.path / "tasks"))
    if config.model.adapter is not None and begun:  # its weights are those of row 0
        kept |= {"adapter": None, "lora": LoraOptions.model_validate(resolved["lora"])}
    backbone = _load_backbone(config, kept, model_path)
    if config.model.adapter is not None and not begun and _adapter(backbone) != resolved["adapter_sha256"]:
        raise InputError(
            f"The adapter '{config.model.adapter}' has changed since '{directory.path}' was started.",
            "Restore it, or use another folder for a new run.",
        )
    check_base(directory, backbone)
    session = Session(directory, config, backbone, listener)
    session.restore()
    return session


def _check_adapter(backbone: Backbone) -> Backbone:
    """Return a backbone; refuse an adapter to begin with whose lineage has another base or tokenizer.

    Raises:
        InputError: naming both.
    """
    folder = backbone.pretrained_from.adapter
    if folder is not None and (lineage := read_lineage(folder)) is not None:
        lineage.check_base(loaded_base(backbone), tokenizer_digest(backbone), f"The adapter in '{folder}'")
    return backbone


def _adapter(backbone: Backbone) -> str | None:
    """Return the SHA-256 of the adapter that the run begins with."""
    folder = backbone.pretrained_from.adapter
    return None if folder is None else adapter_digest(folder)


def _load_backbone(config: RunConfig, kept: Mapping[str, Any], model_path: str | None = None) -> Backbone:
    options = config.model.model_copy(update={**kept, "name": model_path or config.model.name})
    lengths = resolve_lengths(options, config.training.max_input, config.training.max_target)
    backbone = load_backbone(options, lengths, derive_seed(config.seed, "model"))
    evaluation = config.evaluation
    if evaluation.engine != "transformers" and isinstance(backbone, Causal):
        backbone.engine = make_engine(
            evaluation.engine, backbone, evaluation.batch, evaluation.engine_memory, evaluation.engine_sample
        )
    return backbone


def _resolved(backbone: Backbone) -> dict[str, Any]:
    """Return what ``auto`` resolved to, the numbers of parameters, and the fingerprint of the model."""
    trainable = {name: p.numel() for name, p in backbone.module.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable if ".lora_" in name}
    begun_with: dict[str, Any] = {}
    if backbone.pretrained_from.adapter is not None and backbone.options.lora is not None:
        begun_with = {"lora": backbone.options.lora.model_dump(mode="json"), "adapter_sha256": _adapter(backbone)}
    return {
        **begun_with,
        "device": backbone.device.type,
        "precision": backbone.precision,
        "weights": backbone.weights,
        "lora_targets": sorted(layers),
        "trainable_parameters": sum(trainable.values()),
        "parameters": sum(p.numel() for p in backbone.module.parameters()),
        "model_fingerprint": fingerprint(backbone),
        "tokenizer_sha256": tokenizer_digest(backbone),
        "model_commit": hub_commit(backbone),
        "base_card": base_card(backbone.pretrained_from.source),
    }
