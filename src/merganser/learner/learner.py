"""The learner: a run directory that learns one task after another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel

from merganser import processes
from merganser.config import RunConfig, check_config, differences
from merganser.errors import InputError
from merganser.events import Listener, Notice, silent
from merganser.learner import checks, inference, learn_task, references
from merganser.learner.session import Session
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score, ScoreRow
from merganser.models.base import Answer, Backbone
from merganser.models.loading import load_backbone, resolve_lengths
from merganser.runs.directory import RunDirectory
from merganser.runs.record import RunInfo, RunRecord
from merganser.runs.versions import versions
from merganser.streams.task import Task
from merganser.training.determinism import derive_seed


class Learner:
    """One model that learns task after task; the run directory is its memory.

    :meth:`open` brings everything back from the directory and :meth:`learn` appends to it. A stream is several calls of
    ``learn``, so continuing after a crash, adding a task next month and running a benchmark are one code path::

        with Learner.open("run", model={"name": "google/flan-t5-small", "kind": "seq2seq"}, method="aim") as learner:
            learner.learn(task)
            print(learner.scores.values)
            print(learner.predict(["..."]))
    """

    def __init__(self, session: Session, *, new: bool = False) -> None:
        self.session = session
        self._new = new

    @classmethod
    def open(
        cls,
        run: str | Path,
        *,
        listener: Listener = silent,
        command: str = "python",
        read_only: bool = False,
        model_path: str | None = None,
        **sections: Any,
    ) -> Learner:
        """Open a run, or start one.

        Args:
            run: the run directory.
            listener: is told what happens.
            command: written into the record of a new run.
            read_only: for asking and measuring; does not lock the run, and :meth:`learn` is refused.
            model_path: where the pretrained model of an existing run is now, if it is not where it was.
            sections: ``model``, ``method``, ``memory``, ``training``, ``evaluation``, ``seed``, ``stream``: options
                objects or plain values as in the YAML file; none for an existing run, defaults for a new one.

        Raises:
            InputError: something asked for is impossible, differs from what the run was started with, or the run is
                damaged, in use, or of a newer version.
        """
        processes.initialize()
        path = Path(run)
        given = {key: _plain(value) for key, value in sections.items() if value is not None}
        listener = listener if processes.is_main() else silent
        if RunDirectory.exists(path):
            return cls(_reopen(path, given, listener, read_only, model_path))
        if read_only or "model" not in given:
            raise InputError(
                f"There is no run in '{path}'.", "Start one with `merganser run`, or give Learner.open a model."
            )
        return cls(_start(path, check_config(given, "options"), listener, command), new=True)

    @classmethod
    def of_config(
        cls, run: Path, config: RunConfig, *, listener: Listener = silent, command: str = "python"
    ) -> Learner:
        """Start a run with a whole configuration, or continue the one that was started with the same.

        A run that was started differently is refused, unless it has learned nothing yet: then it starts over.
        """
        processes.initialize()
        listener = listener if processes.is_main() else silent
        if RunDirectory.exists(run) and not _start_over(run, config, listener):
            asked = config.model_dump(mode="json", exclude={"stream"})
            return cls(_reopen(run, asked, listener, read_only=False))
        return cls(_start(run, config, listener, command), new=True)

    def close(self) -> None:
        """Let go of the run."""
        self.session.directory.lock.release()

    def __enter__(self) -> Learner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._new:
            # So that a corrected configuration finds no run that was started differently.
            self.session.directory.discard_if_empty()
        self.close()

    @property
    def learned(self) -> list[str]:
        """Names of the tasks learned so far, in order."""
        return self.session.learned

    @property
    def scores(self) -> ScoreMatrix:
        """The score matrix so far."""
        return self.session.directory.matrix()

    @property
    def record(self) -> RunRecord:
        """Everything the run directory says."""
        return self.session.directory.record()

    def learn(self, *tasks: Task) -> ScoreRow:
        """Learn a task (several at once with a method such as joint training) and score every known task.

        The run changes only when everything is complete: an error or a crash leaves it as it was.

        Raises:
            InputError: a task that is malformed or learned already, or a memory batch larger than the memory.
            RunError: the loss became not finite, or the disk is full.
        """
        return learn_task.TaskRun(self.session, tasks).run()

    def learn_stream(self, tasks: Sequence[Task]) -> None:
        """Learn the tasks of a stream in order, skipping those learned already.

        Everything that can be wrong with the stream is found before any work.

        Raises:
            InputError, RunError: as :meth:`learn`; also a stream that is not the one this run has begun.
        """
        session = self.session
        checks.check_stream(session, tasks)
        session.future_tasks = list(tasks) if session.config.evaluation.future else []
        missing = [task for task in tasks if task.name not in session.learned]
        if not missing:
            session.listener(Notice("Every task of the stream is learned already."))
        elif session.method.joint:
            self.learn(*missing)
        else:
            for task in missing:
                self.learn(task)

    def measure_references(self, tasks: Sequence[Task]) -> dict[str, Score]:
        """Scores of a fresh model trained on each task alone (cached); see :mod:`merganser.learner.references`."""
        return references.measure_references(self.session, tasks)

    def predict(self, texts: Sequence[str], task: str | None = None) -> list[Answer]:
        """Answer texts with what was learned; see :func:`merganser.learner.inference.predict`."""
        return inference.predict(self.session, texts, task)

    def evaluate(self) -> dict[str, Score]:
        """Score the model as it is now on the test sets of all learned tasks, without changing the run."""
        return inference.evaluate(self.session)

    def export(self, out: str | Path, *, merged: bool = False, task: str | None = None) -> None:
        """Write the model for use without Merganser; see :func:`merganser.learner.inference.export`."""
        inference.export(self.session, Path(out), merged=merged, task=task)


def _start(path: Path, config: RunConfig, listener: Listener, command: str) -> Session:
    RunDirectory.check_new(path)
    # The model comes before the folder: if it is not there, nothing is left behind.
    backbone = processes.run_collectively(lambda: _load(config, config.model.precision))
    info = RunInfo(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        seed=config.seed,
        processes=processes.world_size(),
        config={**config.model_dump(mode="json"), "resolved": _resolved(backbone)},
        versions=versions(),
    )
    return Session(RunDirectory.create(path, info), config, backbone, listener)


def _start_over(path: Path, config: RunConfig, listener: Listener) -> bool:
    """Take back a run that was started differently and has learned nothing; whether that was done."""
    directory = processes.run_collectively(lambda: RunDirectory.open(path))
    kept = check_config({k: v for k, v in directory.info.config.items() if k != "resolved"}, str(path / "run.yaml"))
    if len(directory.row_folders()) > 1 or not differences(kept.sections(), config.sections()):
        return False
    directory.lock.acquire()
    processes.on_main(directory.discard)
    listener(Notice(f"'{path}' had learned nothing yet; it starts over with the new configuration."))
    return True


def _reopen(
    path: Path, given: Mapping[str, Any], listener: Listener, read_only: bool, model_path: str | None = None
) -> Session:
    directory = processes.run_collectively(lambda: RunDirectory.open(path))
    kept = {key: value for key, value in directory.info.config.items() if key != "resolved"}
    config = check_config(kept, str(path / "run.yaml"))
    asked = {key: value for key, value in given.items() if key != "stream"}
    wanted = check_config({**config.sections(), **asked}, "options")
    if found := differences(config.sections(), wanted.sections()):
        raise InputError(
            f"The run '{path}' was started differently: {'; '.join(found)}.",
            "Use the same configuration to continue it, or another folder for a new run.",
        )
    if "training" in asked:
        config = config.with_changes_of(wanted)
    if not read_only:
        directory.lock.acquire()
    try:
        notes = [] if read_only else directory.repair()
        session = processes.run_collectively(lambda: _session(directory, config, listener, model_path))
    except BaseException:
        directory.lock.release()
        raise
    learned = session.learned
    if learned and not read_only:
        listener(Notice(f"Continuing '{path}' after {len(learned)} learned task(s): {', '.join(learned)}."))
    for note in notes:
        listener(Notice(note))
    return session


def _session(directory: RunDirectory, config: RunConfig, listener: Listener, model_path: str | None) -> Session:
    """The run's model and method, as they are after its last row."""
    # The precision that `auto` came to where the run began is kept on every machine it goes on.
    resolved = directory.info.config.get("resolved", {})
    backbone = _load(config, resolved.get("precision", config.model.precision), model_path)
    if fingerprint(backbone) != resolved.get("model_fingerprint"):
        raise InputError(
            f"The model '{model_path or config.model.name}' is not the one that '{directory.path}' was started with.",
            "Give the folder of the same pretrained model (--model, or model_path from Python).",
        )
    session = Session(directory, config, backbone, listener)
    session.restore()
    return session


def _load(config: RunConfig, precision: str, model_path: str | None = None) -> Backbone:
    options = config.model.model_copy(update={"precision": precision, "name": model_path or config.model.name})
    lengths = resolve_lengths(options, config.training.max_input, config.training.max_target)
    return load_backbone(options, lengths, derive_seed(config.seed, "model"))


def _resolved(backbone: Backbone) -> dict[str, Any]:
    """What `auto` came to, and how much is trained."""
    trainable = {name: p.numel() for name, p in backbone.module.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable if ".lora_" in name}
    return {
        "precision": backbone.precision,
        "lora_targets": sorted(layers),
        "trainable_parameters": sum(trainable.values()),
        "parameters": sum(p.numel() for p in backbone.module.parameters()),
        "model_fingerprint": fingerprint(backbone),
    }


def fingerprint(backbone: Backbone) -> str:
    """SHA-256 over names, shapes and the first values of every tensor of a freshly loaded model.

    Tells one pretrained model from another without reading gigabytes.
    """
    digest = hashlib.sha256()
    for name, tensor in backbone.module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


__all__ = ["Learner"]
