"""Experiment trackers through transformers' integrations: TensorBoard, Weights & Biases, MLflow, Trackio.

Each has one run per run directory, whatever the number of tasks and of interruptions: the trainer of a task would begin
one per task, with steps that start over.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from merganser.errors import InputError
from merganser.models.precision import model_device

PROJECT = "merganser"
"""Where no variable of the tracker's own names a project."""

TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's files in a run."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers see it.

    Attributes:
        folder: the run directory.
        identity: 8 letters and digits that are the same whenever the run is continued, here or on another machine.
        settings: its configuration by dotted key, such as ``training.batch``.
    """

    folder: Path
    identity: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the tracker's run: the folder's, and the identity."""
        return f"{self.folder.resolve().name}-{self.identity}"


class _Arguments(TrainingArguments):
    """The arguments that integrations read; what they record as configuration are the settings of the run."""

    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


class Tracker(ABC):
    """One tracker, open while a run learns.

    Args:
        run: what is tracked.
        step: optimizer steps of the whole run so far; later values replace what was reported after it.
    """

    title: str
    packages: Sequence[str]
    """Packages of which one must be installed; the first is the one to install."""

    def __init__(self, run: TrackedRun, step: int) -> None:
        self.run = run
        self.arguments = _arguments(run)
        self.state, self.control = TrainerState(global_step=step), TrainerControl()
        self.integration = self.begin(step)

    @abstractmethod
    def begin(self, step: int) -> Any:
        """Begin or continue the tracker's run; return transformers' callback for it."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report values at a step of the whole run."""
        self.state.global_step = step
        self.integration.on_log(self.arguments, self.state, self.control, logs=dict(values))

    def end(self, failed: bool) -> None:
        """End the tracker's run."""
        self.integration.on_train_end(self.arguments, self.state, self.control)


class TensorBoard(Tracker):
    """Files in the run directory, or in the folder that ``TENSORBOARD_LOGGING_DIR`` names."""

    title = "TensorBoard"
    packages = ("tensorboard", "tensorboardX")

    def begin(self, step: int) -> Any:
        from transformers.integrations import TensorBoardCallback

        callback = TensorBoardCallback()
        folder = callback.logging_dir or str(self.run.folder / TENSORBOARD)
        # Steps that were reported and not saved before an interruption are hidden: they come again.
        callback.tb_writer = callback._SummaryWriter(log_dir=folder, purge_step=step + 1 if step else None)
        callback.on_train_begin(self.arguments, self.state, self.control)
        return callback


class WeightsAndBiases(Tracker):
    """A run with the identity as its id, in the project of ``WANDB_PROJECT``; a run that is open is used as it is."""

    title = "Weights & Biases"
    packages = ("wandb",)

    def begin(self, step: int) -> Any:
        from transformers.integrations import WandbCallback

        callback = WandbCallback()
        wandb = callback._wandb
        self._finish = None if wandb.run is not None else wandb.finish
        if wandb.run is None:
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            wandb.init(project=project, name=self.run.name, id=self.run.identity, resume="allow")
        callback.setup(self.arguments, self.state, None)
        return callback

    def end(self, failed: bool) -> None:
        if self._finish is not None:
            self._finish(exit_code=int(failed))


class MLflow(Tracker):
    """A run with a tag by which it is found again; a run that is open is used as it is."""

    title = "MLflow"
    packages = ("mlflow",)

    TAG = "merganser.run"

    def begin(self, step: int) -> Any:
        import mlflow
        from transformers.integrations import MLflowCallback

        self._end_run = None
        if mlflow.active_run() is None:
            if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
                mlflow.set_experiment(experiment)
            same = f"tags.`{self.TAG}` = '{self.run.identity}'"
            runs = mlflow.search_runs(filter_string=same, output_format="list", max_results=1)
            known = runs[0].info.run_id if runs else None
            mlflow.start_run(run_id=known, run_name=self.run.name, tags={self.TAG: self.run.identity})
            self._end_run = mlflow.end_run
        callback = MLflowCallback()
        callback.setup(self.arguments, self.state, None)
        callback._async_log = False  # a thread of its own would keep failures to itself
        return callback

    def log(self, values: Mapping[str, float], step: int) -> None:
        super().log({_ascii_key(key): value for key, value in values.items()}, step)

    def end(self, failed: bool) -> None:
        if self._end_run is not None:
            self._end_run("FAILED" if failed else "FINISHED")


class Trackio(Tracker):
    """A run by its name, in the project of ``TRACKIO_PROJECT``."""

    title = "Trackio"
    packages = ("trackio",)

    def begin(self, step: int) -> Any:
        from transformers.integrations import TrackioCallback

        callback = TrackioCallback()
        callback.setup(self.arguments, self.state, None)
        return callback


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""Name in ``training.report_to``, as in transformers -> tracker."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        InputError: naming the package.
    """
    for name in names:
        tracker = TRACKERS[name]
        if not any(importlib.util.find_spec(package) is not None for package in tracker.packages):
            raise InputError(
                f"training.report_to: {name} needs the package {tracker.packages[0]}, which is not installed.",
                f"Install it (pip install {tracker.packages[0]}), or leave it out of training.report_to.",
            )


def run_identity(run_file: Path) -> str:
    """Return 8 hexadecimal digits of the SHA-256 of ``run.yaml``, which holds the time the run was started."""
    return hashlib.sha256(run_file.read_bytes()).hexdigest()[:8]


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys; lists as JSON, so that every tracker takes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _arguments(run: TrackedRun) -> _Arguments:
    arguments = _Arguments(
        output_dir=str(run.folder),
        run_name=run.name,
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        report_to=[],
        use_cpu=model_device().type == "cpu",
    )
    arguments.settings = run.settings
    return arguments


def _ascii_key(key: str) -> str:
    """Return a key of MLflow's characters; transformers replaces all others by ``_``, which makes keys equal."""
    plain = re.sub(r"[^0-9A-Za-z_\-. :/]", "_", key)
    return plain if plain == key else f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:4]}"
