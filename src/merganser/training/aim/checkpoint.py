"""AimMerging's state in the checkpoints of a stock trainer.

Two files in ``checkpoint-N`` beside those of ``transformers.Trainer``: ``aim_merging.safetensors`` (weights after the
last merge) and ``aim_merging.json`` (decisions, draws, records). Where the weights are sharded (FSDP2), each
rank writes its shards, ``aim_merging.process-K.safetensors``, and only as many processes can resume from it.

The Trainer's exportable callback state in ``trainer_state.json`` does not suffice: it rebuilds a callback from JSON
values, which cannot hold weights or a memory of examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from merganser import processes
from merganser.control import ControllerConfig
from merganser.errors import InputError, RunError
from merganser.files.atomic import write_json, write_tensors
from merganser.files.documents import parse_json, read_text
from merganser.training.aim.config import AimConfig
from merganser.training.state import TaskState

FORMAT = 2
"""Version of the two files; other versions are refused."""

VALUES, TENSORS = "aim_merging.json", "aim_merging.safetensors"

SAME_SIZE = 1e-5
"""Relative difference up to which two sums of absolute weights, in any order of summation, count as equal."""


@dataclass(frozen=True)
class Identity:
    """Properties that a state must share with the training that resumes from it.

    Attributes:
        step: optimizer steps taken.
        size: sum of the absolute values of the trainable weights.
        sharded: whether each rank holds shards of them; else every rank holds all weights, and those of rank 0 are
            written.
        settings: see :func:`identifying_settings`.
    """

    step: int
    size: float
    sharded: bool
    settings: dict[str, Any]


def identifying_settings(config: AimConfig) -> dict[str, Any]:
    """Return the settings that must not change when training resumes: those of the controller, and the fusion."""
    names = [*(item.name for item in fields(ControllerConfig)), "fusion"]
    values = {name: getattr(config, name) for name in names}
    return values | {"rehearsal_steps": config.first_rehearsal_steps}


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return where a trainer writes the checkpoint of this step."""
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def candidate_folders(resume_from: str | Path | None, args: TrainingArguments, state: TrainerState) -> list[Path]:
    """Return possible folders of the checkpoint that a trainer resumes from; callbacks do not receive its path."""
    if resume_from is not None:
        return [Path(resume_from)]
    named = args.resume_from_checkpoint
    return [*([Path(named)] if isinstance(named, str) else []), checkpoint_folder(args, state)]


def _tensors_file(sharded: bool) -> str:
    """Return the name of the tensors file that this rank writes and reads."""
    return f"aim_merging.process-{processes.rank()}.safetensors" if sharded else TENSORS


def write_state(folder: Path, identity: Identity, state: TaskState) -> None:
    """Add the state to a checkpoint; called on every rank.

    Args:
        folder: the checkpoint, written by the trainer just before.
        identity: checked by :func:`read_state`.

    Raises:
        RunError: the trainer wrote its checkpoint elsewhere, or the disk is full.
    """

    def begin() -> None:
        if not folder.is_dir():
            raise RunError(
                f"The trainer has written no checkpoint '{folder}' to which AimMerging could add its state.",
                "Use one that saves to output_dir/checkpoint-STEP, or AimMerging(checkpoints=False) without resuming.",
            )

    def add() -> None:
        write_tensors(folder / _tensors_file(identity.sharded), state.tensors)

    described = {"format": FORMAT, "step": identity.step, "size": identity.size, "settings": identity.settings}
    described["values"] = state.values
    if identity.sharded:
        described["processes"] = processes.world_size()
    processes.on_main(begin)
    if identity.sharded:
        processes.run_collectively(add)
    else:
        processes.on_main(add)
    # Last: where this file exists, the others are complete.
    processes.on_main(lambda: write_json(folder / VALUES, described))


def read_state(folders: Sequence[Path], identity: Identity) -> TaskState:
    """Return the state in the first of these folders that has one; called on every rank.

    Args:
        identity: of the training that resumes.

    Raises:
        InputError: no folder has one, or it is damaged, of another version, of other weights, of weights that
            were sharded differently, or of other settings.
    """
    return processes.run_collectively(lambda: _read_state(folders, identity))


def _read_state(folders: Sequence[Path], identity: Identity) -> TaskState:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = next((folder for folder in folders if (folder / VALUES).is_file()), None)
    if folder is None:
        searched = " or ".join(f"'{folder}'" for folder in folders)
        raise InputError(
            f"Training resumes at step {identity.step}, but there is no {VALUES} in {searched}.",
            "If the checkpoint is elsewhere, give AimMerging(resume_from=FOLDER); if AimMerging was not there when it "
            "was written, or it was interrupted while writing, resume from an earlier one or start over.",
        )
    try:
        described = parse_json(read_text(folder / VALUES))
        version, step, size, values = (described[key] for key in ("format", "step", "size", "values"))
        settings = described["settings"] if version == FORMAT else {}
        written_by, read_by = described.get("processes"), processes.world_size() if identity.sharded else None
        tensors = load_file(folder / _tensors_file(identity.sharded)) if written_by == read_by else {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"The state of AimMerging in '{folder}' is damaged: {error}.", "Resume from an earlier checkpoint."
        ) from error
    if version != FORMAT:
        raise InputError(
            f"The state of AimMerging in '{folder}' has format {version}; this version reads {FORMAT}.",
            "Resume with the version that wrote it, or start over.",
        )
    if written_by != read_by:
        raise InputError(
            f"The state of AimMerging in '{folder}' was written by {_describe_sharding(written_by)}; now it is "
            f"{_describe_sharding(read_by)}.",
            "Resume in the same way, or start over.",
        )
    if step != identity.step or not math.isclose(size, identity.size, rel_tol=SAME_SIZE):
        raise InputError(
            f"The state of AimMerging in '{folder}' does not belong to the weights at step {identity.step}.",
            "Give AimMerging(resume_from=FOLDER) the folder that is given to train(resume_from_checkpoint=FOLDER).",
        )
    different = [key for key, value in identity.settings.items() if settings.get(key) != value]
    if different:
        values_then = ", ".join(f"{key} {settings.get(key)} (now {identity.settings[key]})" for key in different)
        raise InputError(
            f"The state of AimMerging in '{folder}' was written with {values_then}.",
            "Resume with the settings that training began with, or start over.",
        )
    return TaskState(values, tensors)


def _describe_sharding(count: int | None) -> str:
    if count is None:
        return "a process with full weights"
    return f"{count} process{'' if count == 1 else 'es'} with sharded weights"
