"""Checkpoints of the task that is being learned, from which an interrupted run resumes in the middle of the task.

``checkpoint/NN-step-SSSSSS/`` in a run directory (``NN``: the row that is being learned) holds

``checkpoint.json``      :data:`FORMAT`, the identity of the task, all values that are not tensors, and the SHA-256 of
                         the other files; sealed
``tensors.safetensors``  weights, optimizer moments, state of the method, states of random generators
``process-N.safetensors``  the same of process N, where several train together: what differs from process 0, or its
                         shards of everything
``trainer_state.json``   the ``TrainerState`` of transformers

Each is complete from the moment it has its name. The last two are kept, so that one may be damaged.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.files.atomic import StagedChanges, full_disk_is_an_error, make_folder, remove, write, write_tensors
from merganser.files.documents import parse_json, read_bytes, read_text
from merganser.files.temporary_names import PARTIAL, temporary_path
from merganser.runs.checksums import CHANGED, MISSING, checksums, is_intact, problem_of, sealed
from merganser.runs.links import CHECKPOINTS as FOLDER
from merganser.runs.links import refuse_links

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
"""Version of the layout of a checkpoint; one with another number is not used."""

KEPT = 2
"""How many checkpoints are kept."""

VALUES, TENSORS, TRAINER_STATE = "checkpoint.json", "tensors.safetensors", "trainer_state.json"
PROCESS_VALUES = "values"
"""Key in the metadata of a file of tensors: the values of one process that are not tensors, as JSON."""

NAME = re.compile(r"(\d{2,})-step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        folder: where it is.
        step: optimizer steps of the task taken.
        values: as given to :meth:`CheckpointFolder.finish`.
        tensors: as given to :meth:`CheckpointFolder.add` by this process; what process 0 gave where it gave nothing.
        process_values: as given to :meth:`CheckpointFolder.add` by each process.
        same_processes: whether as many processes wrote it as there are now.
    """

    folder: Path
    step: int
    values: dict[str, Any]
    tensors: dict[str, Tensor]
    process_values: list[dict[str, Any]]
    same_processes: bool


class UnusableCheckpoint(Exception):
    """The reason why a checkpoint cannot be used."""


class CheckpointFolder:
    """The checkpoints of one task in the run directory ``run``.

    A checkpoint is written in three steps inside :meth:`unfinished`: :meth:`begin`, :meth:`add` and :meth:`finish`.
    The second runs in every process, the others in process 0 alone, each when the one before is done everywhere.

    Args:
        row: the row of the score matrix that is being learned.
        identity: everything that a checkpoint must have in common with the task to be resumed, as plain JSON values.
        rank, processes: the number of this process, and how many train together.
        sharded: whether each process holds other parts of the weights. Such a checkpoint can only be used by as many.
    """

    def __init__(
        self, run: Path, row: int, identity: Mapping[str, Any], rank: int = 0, processes: int = 1, sharded: bool = False
    ) -> None:
        self.run = run
        self.path = run / FOLDER
        self.row = row
        self.identity = dict(identity)
        self.rank = rank
        self.processes = processes
        self.sharded = sharded

    def _target(self, step: int) -> Path:
        return self.path / f"{self.row:02d}-step-{step:06d}"

    def _unfinished(self, step: int) -> Path:
        return temporary_path(self._target(step))

    @contextlib.contextmanager
    def unfinished(self, step: int) -> Iterator[None]:
        """Write a checkpoint in the block; an error leaves the checkpoints as they were before."""
        try:
            yield
        except BaseException:
            if self.rank == 0:
                remove(self._unfinished(step))
                _remove_if_empty(self.path)
            raise

    def begin(self, step: int) -> None:
        """Create the temporary folder of a checkpoint.

        Raises:
            InputError: the folder of the checkpoints is a link out of the run.
            RunError: the disk is full.
        """
        refuse_links(self.run, (FOLDER,))
        remove(self._unfinished(step))
        make_folder(self._unfinished(step))

    def add(self, step: int, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write the part of this process.

        Args:
            values: plain JSON values that differ from process to process.
            tensors: no two share memory. A process other than 0 whose weights are not shards gives only those that
                differ.

        Raises:
            RunError: the disk is full.
        """
        metadata = {PROCESS_VALUES: json.dumps(dict(values), allow_nan=False)}
        write_tensors(self._unfinished(step) / file_of(self.rank), tensors, metadata)

    def finish(self, step: int, values: Mapping[str, Any], trainer_state: str) -> None:
        """Give the checkpoint its name, and delete those before the last two.

        Args:
            values: plain JSON values; finite numbers only.
            trainer_state: the text of ``trainer_state.json``.

        Raises:
            RunError: the disk is full.
        """
        unfinished, target = self._unfinished(step), self._target(step)
        described = {"format": FORMAT, "identity": self.identity, "step": step, "values": dict(values)}
        described |= {"processes": self.processes, "sharded": self.sharded}
        with full_disk_is_an_error(target), StagedChanges() as changes:
            write(unfinished / TRAINER_STATE, trainer_state.encode())
            described["sha256"] = checksums(unfinished)
            write(unfinished / VALUES, sealed(described, indent=None))
            changes.rename_folder(unfinished, target)
        for old in list_checkpoints(self.run)[:-KEPT]:
            remove(old)

    def latest(self, compare: bool = True) -> tuple[Checkpoint | None, list[str]]:
        """Read the newest checkpoint of this task that can be used, and delete those that cannot.

        Args:
            compare: compare the files with their checksums; False where this was done just before.

        Returns:
            The checkpoint, or ``None`` if the task must start over, and a sentence per checkpoint that was deleted.
        """
        notes = []
        checkpoint = None
        for folder in reversed(list_checkpoints(self.run)):
            try:
                checkpoint = self._read(folder, compare)
                break
            except UnusableCheckpoint as reason:
                notes.append(f"the checkpoint '{folder.name}' {reason}; it was discarded.")
                remove(folder)
        if checkpoint is None:
            clear(self.run)
            if notes:
                notes.append("No other checkpoint can be used: the task starts over.")
        return checkpoint, [note[0].upper() + note[1:] for note in notes]

    def _read(self, folder: Path, compare: bool) -> Checkpoint:
        from safetensors import SafetensorError

        try:
            described = parse_json(read_text(folder / VALUES))
            if described["format"] != FORMAT:
                raise UnusableCheckpoint(
                    f"was written by another version (format {described['format']}; this version reads {FORMAT})"
                )
            if compare and (damage := damage_of(folder)):
                raise UnusableCheckpoint(f"is damaged ({damage})")
            identity, step, values = described["identity"], int(described["step"]), described["values"]
            if identity != self.identity:
                names = " + ".join(identity["tasks"])
                raise UnusableCheckpoint(f"is of '{names}' as learned with other data, settings or tasks before it")
            count, sharded = int(described["processes"]), bool(described["sharded"])
            if sharded != self.sharded or (sharded and count != self.processes):
                weights = "with shards of the weights" if sharded else "that each held all weights"
                raise UnusableCheckpoint(
                    f"is of {count} process{'' if count == 1 else 'es'} {weights}, unlike the present ones"
                )
            parse_json(read_text(folder / TRAINER_STATE))
            # Every process checks the files of all others too, so that all come to the same result.
            needed = {self.rank} if sharded else {0, self.rank}
            parts = [_read_part(folder / file_of(rank), rank in needed) for rank in range(count)]
        except FileNotFoundError as error:
            raise UnusableCheckpoint(f"is damaged ({Path(error.filename or TENSORS).name} is missing)") from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UnusableCheckpoint(f"is damaged ({type(error).__name__}: {error})") from error
        same = count == self.processes
        tensors = {} if sharded else parts[0][1]
        if same:
            tensors = {**tensors, **parts[self.rank][1]}
        return Checkpoint(folder, step, values, tensors, [values for values, _ in parts], same)

    def clear(self) -> None:
        """Delete all checkpoints."""
        clear(self.run)


def file_of(rank: int) -> str:
    """Return the name of the file of tensors of a process."""
    return TENSORS if rank == 0 else f"process-{rank}.safetensors"


def _read_part(file: Path, tensors_needed: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a process's values, and its tensors if they are needed; the file is checked in any case."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        values: dict[str, Any] = parse_json(opened.metadata()[PROCESS_VALUES])
        names = opened.keys() if tensors_needed else ()
        return values, {name: opened.get_tensor(name) for name in names}


def damage_of(folder: Path, again: bool = False) -> str:
    """Return which file of a checkpoint is not as recorded, and what is wrong with it; empty: none.

    Args:
        again: as for :func:`merganser.runs.checksums.sha256_of`.

    Raises:
        OSError, ValueError: ``checkpoint.json`` cannot be read.
    """
    content = read_bytes(folder / VALUES)
    described = parse_json(content.decode("utf-8"))
    if not isinstance(described, dict) or not isinstance(described.get("sha256", {}), dict):
        raise ValueError("no values in it")
    if not {"checksum", "sha256"} & described.keys():
        return ""  # none were recorded
    if not is_intact(content, str(described.get("checksum"))):
        return f"{VALUES}: {CHANGED}"
    for name, expected in described["sha256"].items():
        if problem := problem_of(folder / name, expected, again):
            return f"{name} is missing" if problem == MISSING else f"{name}: {problem}"
    return ""


def list_checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first; anything else in their folder is left alone."""
    if not (run / FOLDER).is_dir():
        return []
    matches = ((NAME.fullmatch(folder.name), folder) for folder in (run / FOLDER).iterdir())
    return [folder for _, _, folder in sorted((int(m[1]), int(m[2]), folder) for m, folder in matches if m)]


def sweep(run: Path, row: int) -> bool:
    """Delete unfinished checkpoints and those of other rows than this; whether a checkpoint remains.

    Raises:
        InputError: the folder of the checkpoints is a link out of the run.
    """
    refuse_links(run, (FOLDER,))
    remaining = []
    for folder in list_checkpoints(run):
        if int(folder.name.partition("-")[0]) == row:
            remaining.append(folder)
        else:
            remove(folder)
    _clean(run / FOLDER)
    return bool(remaining)


def clear(run: Path) -> None:
    """Delete all checkpoints of a run.

    Raises:
        InputError: the folder of the checkpoints is a link out of the run.
    """
    refuse_links(run, (FOLDER,))
    for folder in list_checkpoints(run):
        remove(folder)
    _clean(run / FOLDER)


def _clean(path: Path) -> None:
    """Delete unfinished checkpoints, and the folder of the checkpoints if nothing is left in it."""
    if path.is_dir():
        for folder in path.glob(f"*{PARTIAL}"):
            if NAME.fullmatch(folder.name.removesuffix(PARTIAL)):
                remove(folder)
        _remove_if_empty(path)


def _remove_if_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
