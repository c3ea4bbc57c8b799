"""Checkpoints of the task in hand, from which an interrupted run goes on in the middle of the task.

``checkpoint/NN-step-SSSSSS/`` in a run directory (``NN``: the row that is being learned) holds

``checkpoint.json``      :data:`FORMAT`, what the checkpoint is of, and all that is not a tensor
``tensors.safetensors``  weights, optimizer moments, what the method holds, states of random generators
``process-N.safetensors``  the same of process N, where several train together: what differs from process 0, or its
                         shards of everything
``trainer_state.json``   the ``TrainerState`` of transformers

Each is complete from the moment it has its name. The last two are kept, so that one may be damaged.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.files.atomic import PARTIAL, full_disk_is_an_error, replace_folder, sync_tree

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
"""Version of the layout of a checkpoint; one with another number is not used."""

KEPT = 2
"""How many checkpoints are kept."""

VALUES, TENSORS, TRAINER_STATE = "checkpoint.json", "tensors.safetensors", "trainer_state.json"
OWN = "values"
"""Key in the metadata of a file of tensors: plain values of one process, as JSON."""

NAME = re.compile(r"(\d{2,})-step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        folder: where it is.
        step: optimizer steps of the task taken.
        values: as given to :meth:`CheckpointFolder.finish`.
        tensors: as given to :meth:`CheckpointFolder.add` by this process; what process 0 gave where it gave nothing.
        own: as given to :meth:`CheckpointFolder.add` by every process.
        same_processes: whether as many processes wrote it as there are now.
    """

    folder: Path
    step: int
    values: dict[str, Any]
    tensors: dict[str, Tensor]
    own: list[dict[str, Any]]
    same_processes: bool


class Unusable(Exception):
    """Why a checkpoint cannot be used."""


class CheckpointFolder:
    """The checkpoints of one task in the run directory ``run``.

    One is written in three steps, :meth:`begin`, :meth:`add` and :meth:`finish`, inside :meth:`unfinished`: the second
    in every process, the others in process 0 alone, each when the one before is done everywhere.

    Args:
        row: the row of the score matrix that is being learned.
        identity: all that a checkpoint must have in common with the task to be continued, as plain JSON values.
        rank, processes: the number of this process, and of how many that train together.
        sharded: whether each of them holds other parts of the weights. Such a checkpoint can only be used by as many.
    """

    def __init__(
        self, run: Path, row: int, identity: Mapping[str, Any], rank: int = 0, processes: int = 1, sharded: bool = False
    ) -> None:
        self.path = folder_of(run)
        self.row = row
        self.identity = dict(identity)
        self.rank = rank
        self.processes = processes
        self.sharded = sharded

    def _target(self, step: int) -> Path:
        return self.path / f"{self.row:02d}-step-{step:06d}"

    def _unfinished(self, step: int) -> Path:
        return self._target(step).with_name(self._target(step).name + PARTIAL)

    @contextlib.contextmanager
    def unfinished(self, step: int) -> Iterator[None]:
        """Where a checkpoint is written; an error leaves the checkpoints as they were before."""
        try:
            yield
        except BaseException:
            if self.rank == 0:
                shutil.rmtree(self._unfinished(step), ignore_errors=True)
                if self.path.is_dir() and not any(self.path.iterdir()):
                    self.path.rmdir()
            raise

    def begin(self, step: int) -> None:
        """Make a folder for a checkpoint.

        Raises:
            RunError: the disk is full.
        """
        shutil.rmtree(self._unfinished(step), ignore_errors=True)
        with full_disk_is_an_error(self._target(step)):
            self._unfinished(step).mkdir(parents=True)

    def add(self, step: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write what this process has.

        Args:
            values: plain JSON values that differ from process to process.
            tensors: no two share memory. Of a process other than 0 whose weights are not shards: those alone that
                differ.

        Raises:
            RunError: the disk is full.
        """
        from safetensors.torch import save_file

        file = self._unfinished(step) / file_of(self.rank)
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with full_disk_is_an_error(self._target(step)):
            save_file(whole, file, metadata={OWN: json.dumps(dict(values), allow_nan=False)})

    def finish(self, step: int, values: Mapping[str, Any], trainer_state: str) -> None:
        """Put the checkpoint in its place; the ones before the last two go.

        Args:
            values: plain JSON values; finite numbers only.
            trainer_state: the text of ``trainer_state.json``.

        Raises:
            RunError: the disk is full.
        """
        unfinished, target = self._unfinished(step), self._target(step)
        described = {"format": FORMAT, "identity": self.identity, "step": step, "values": dict(values)}
        described |= {"processes": self.processes, "sharded": self.sharded}
        with full_disk_is_an_error(target):
            (unfinished / TRAINER_STATE).write_text(trainer_state, encoding="utf-8")
            (unfinished / VALUES).write_text(json.dumps(described, allow_nan=False), encoding="utf-8")
            sync_tree(unfinished)
            replace_folder(unfinished, target)
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

        try:
            described = json.loads((folder / VALUES).read_text(encoding="utf-8"))
            form = described["format"]
            if form != FORMAT:
                raise Unusable(f"was written by another version (format {form}; this version knows {FORMAT})")
            identity, step, values = described["identity"], int(described["step"]), described["values"]
            # One of an earlier version may not say all of it.
            if identity != {key: value for key, value in self.identity.items() if key in identity}:
                names = " + ".join(identity["tasks"])
                raise Unusable(f"is of '{names}' as learned with other data, settings or tasks before it")
            count, sharded = int(described["processes"]), bool(described["sharded"])
            if sharded != self.sharded or (sharded and count != self.processes):
                shared = "that shared the weights out" if sharded else "that each held all weights"
                raise Unusable(f"is of {count} process{'' if count == 1 else 'es'} {shared}, unlike those of now")
            json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
            # Every process reads the files of all others too: all of them must come to the same opinion.
            wanted = {self.rank} if sharded else {0, self.rank}
            own = [_read_tensors(folder / file_of(rank), rank in wanted) for rank in range(count)]
        except FileNotFoundError as error:
            raise Unusable(f"is damaged ({Path(error.filename or TENSORS).name} is missing)") from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise Unusable(f"is damaged ({type(error).__name__}: {error})") from error
        same = count == self.processes
        tensors = {} if sharded else own[0][1]
        if same:
            tensors = {**tensors, **own[self.rank][1]}
        return Checkpoint(folder, step, values, tensors, [values for values, _ in own], same)

    def clear(self) -> None:
        """Delete all checkpoints."""
        clear(self.path)


def file_of(rank: int) -> str:
    """The file of tensors of a process."""
    return TENSORS if rank == 0 else f"process-{rank}.safetensors"


def _read_tensors(file: Path, wanted: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A process's own values, and its tensors if they are ``wanted``; the file is checked in any case."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        values: dict[str, Any] = json.loads(opened.metadata()[OWN])
        return values, {name: opened.get_tensor(name) for name in opened.keys()} if wanted else {}  # noqa: SIM118


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
