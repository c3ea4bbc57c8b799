"""Checkpoints of the task in hand, from which an interrupted run goes on in the middle of the task.

``checkpoint/NN-step-SSSSSS/`` in a run directory (``NN``: the row that is being learned) holds

``checkpoint.json``      :data:`FORMAT`, what the checkpoint is of, and all that is not a tensor
``tensors.safetensors``  weights, optimizer moments, what the method holds, states of random generators
``trainer_state.json``   the ``TrainerState`` of transformers

Each is complete from the moment it has its name. The last two are kept, so that one may be damaged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.runs.atomic import PARTIAL, full_disk_is_an_error, replace_folder, sync_tree

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the layout of a checkpoint; one with another number is not used."""

KEPT = 2
"""How many checkpoints are kept."""

VALUES, TENSORS, TRAINER_STATE = "checkpoint.json", "tensors.safetensors", "trainer_state.json"

NAME = re.compile(r"(\d{2,})-step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        folder: where it is.
        step: optimizer steps of the task taken.
        values, tensors: as given to :meth:`CheckpointFolder.write`.
    """

    folder: Path
    step: int
    values: dict[str, Any]
    tensors: dict[str, Tensor]


class Unusable(Exception):
    """Why a checkpoint cannot be used."""


class CheckpointFolder:
    """The checkpoints of one task in the run directory ``run``.

    Args:
        row: the row of the score matrix that is being learned.
        identity: all that a checkpoint must have in common with the task to be continued, as plain JSON values.
    """

    def __init__(self, run: Path, row: int, identity: Mapping[str, Any]) -> None:
        self.path = folder_of(run)
        self.row = row
        self.identity = dict(identity)

    def write(self, step: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor], trainer_state: str) -> None:
        """Add a checkpoint; the ones before the last two go.

        Args:
            values: plain JSON values; finite numbers only.
            tensors: no two share memory.
            trainer_state: the text of ``trainer_state.json``.

        Raises:
            RunError: the disk is full; the checkpoints are as they were before.
        """
        from safetensors.torch import save_file

        target = self.path / f"{self.row:02d}-step-{step:06d}"
        unfinished = target.with_name(target.name + PARTIAL)
        described = {"format": FORMAT, "identity": self.identity, "step": step, "values": dict(values)}
        with full_disk_is_an_error(target):
            try:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                save_file(whole, unfinished / TENSORS)
                (unfinished / TRAINER_STATE).write_text(trainer_state, encoding="utf-8")
                (unfinished / VALUES).write_text(json.dumps(described, allow_nan=False), encoding="utf-8")
                sync_tree(unfinished)
                replace_folder(unfinished, target)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                if self.path.is_dir() and not any(self.path.iterdir()):
                    self.path.rmdir()
                raise
        for old in checkpoints(self.path)[:-KEPT]:
            _discard(old)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint of this task that can be read; all that cannot be used are deleted.

        Returns:
            The checkpoint, or ``None`` if the task must start over, and a sentence per checkpoint that was deleted.
        """
        notes = []
        found = None
        for folder in reversed(checkpoints(self.path)):
            try:
                found = self._read(folder)
                break
            except Unusable as reason:
                notes.append(f"the checkpoint '{folder.name}' {reason}; it was discarded.")
                _discard(folder)
        if found is None:
            clear(self.path)
            if notes:
                notes.append("No other checkpoint can be used: the task starts over.")
        return found, [note[0].upper() + note[1:] for note in notes]

    def _read(self, folder: Path) -> Checkpoint:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            described = json.loads((folder / VALUES).read_text(encoding="utf-8"))
            form = described["format"]
            if form != FORMAT:
                raise Unusable(f"was written by another version (format {form}; this version knows {FORMAT})")
            identity, step, values = described["identity"], int(described["step"]), described["values"]
            if identity != self.identity:
                names = " + ".join(identity["tasks"])
                raise Unusable(f"is of '{names}' as learned with other data, settings or tasks before it")
            json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
            return Checkpoint(folder, step, values, load_file(folder / TENSORS))
        except FileNotFoundError as error:
            raise Unusable(f"is damaged ({Path(error.filename or TENSORS).name} is missing)") from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise Unusable(f"is damaged ({type(error).__name__}: {error})") from error

    def clear(self) -> None:
        """Delete all checkpoints."""
        clear(self.path)


def folder_of(run: Path) -> Path:
    """Where the checkpoints of a run are."""
    return run / "checkpoint"


def checkpoints(path: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    if not path.is_dir():
        return []
    found = [(int(match[1]), int(match[2]), each) for each in path.iterdir() if (match := NAME.fullmatch(each.name))]
    return [each for _, _, each in sorted(found)]


def sweep(path: Path, row: int) -> bool:
    """Delete what was not finished and what is not of this row; whether a checkpoint remains."""
    if not path.is_dir():
        return False
    for each in path.iterdir():
        match = NAME.fullmatch(each.name)
        if match is None or int(match[1]) != row:
            _discard(each)
    if not any(path.iterdir()):
        path.rmdir()
    return path.is_dir()


def clear(path: Path) -> None:
    """Delete all checkpoints in a folder, and the folder."""
    for each in checkpoints(path):
        _discard(each)
    shutil.rmtree(path, ignore_errors=True)


def _discard(folder: Path) -> None:
    # Renamed first: half of a checkpoint never has a checkpoint's name.
    if not folder.name.endswith(PARTIAL):
        folder = folder.rename(folder.with_name(folder.name + PARTIAL))
    shutil.rmtree(folder)
