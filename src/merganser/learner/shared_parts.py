"""Parts that are the same for several runs: done once, kept in a folder under a digest of all they depend on.

Two kinds: a training in which the method does nothing (no callback, no penalty), such as that of the first task by all
methods that only need a memory or merge at its end, and single-task references; and the answers that a model's weights
give to a test set, such as those of row 0. Two more are in :mod:`merganser.learner.shared_tokens`. A digest has the
*content* of what is read (weights, tokens, options, versions), so a part that was found is the one that would have been
made, bit for bit.

Of several processes that train together, rank 0 looks a part up and writes it; all take it, or all make it. Their parts
are never those of another number of processes or shards, whose sums are rounded otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merganser import processes
from merganser.errors import MerganserError
from merganser.evaluation import ScoredTask
from merganser.files.atomic import make_folder, new_folder, write_json, write_json_lines
from merganser.files.documents import parse_json, read_text
from merganser.files.target_lock import TargetTaken
from merganser.metrics.function import is_function_name
from merganser.runs.checksums import checksums
from merganser.runs.record import CostRecord, RunInfo, SignalRecord
from merganser.streams.task import Task
from merganser.streams.watch import WatchedTask
from merganser.training.data import Mixture
from merganser.training.options import NOT_IN_A_FIRST_TASK
from merganser.training.records import TaskRecords
from merganser.training.trainer import Outcome

if TYPE_CHECKING:
    from merganser.config import RunConfig
    from merganser.models.base import Backbone

VERSIONS = ("merganser", "torch", "transformers", "peft")
OUTCOME = "outcome.json"
MACHINE = ("system", "processor", "gpu")
"""Keys of a run's versions on which the last bits of what a model computes depend."""


@dataclass(frozen=True)
class TrainingData:
    """What a training reads beside weights and options: examples as tokens, those mixed in, and its seed."""

    features: Sequence[Mapping[str, Any]]
    mixture: Mixture | None
    seed: int

    def content(self, backbone: Backbone) -> list[Any]:
        """Return all of it as plain values. Rows of a bank of labels are numbered anew, beside their vectors."""
        features = self.features
        bank = getattr(backbone.module, "bank", None)
        rows: dict[int, int] = {}
        if bank is not None:
            features = [
                {**entry, "candidates": [rows.setdefault(row, len(rows)) for row in entry["candidates"]]}
                for entry in features
            ]
        mixed = [] if self.mixture is None else [list(self.mixture.features), self.mixture.share]
        return [list(features), [] if bank is None else bank[list(rows)], mixed, self.seed]


class SharedParts:
    """A folder of parts, which any number of processes read and add to at the same time.

    Args:
        info: of the run that uses it.

    Attributes:
        fingerprint, tokenizer: SHA-256 of the pretrained model and of its tokenizer.
        versions: of what computes.
        machine: on which.
        saved_seconds: processor seconds that the parts found so far took where they were made.
        reused: names of them.
    """

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self.folder = folder
        resolved = info.config.get("resolved", {})
        self.fingerprint = resolved.get("model_fingerprint")
        self.tokenizer = resolved.get("tokenizer_sha256")
        self.versions = {name: info.versions.get(name) for name in VERSIONS}
        self.machine = {name: info.versions.get(name) for name in MACHINE}
        self.saved_seconds = 0.0
        self.reused: list[str] = []

    def train(
        self,
        backbone: Backbone,
        config: RunConfig,
        data: TrainingData,
        records: TaskRecords,
        train: Callable[[], Outcome],
    ) -> Outcome:
        """Train, or take the weights and records of the same training.

        Args:
            backbone: with the weights that training starts from; afterwards, with the trained ones.
            data: everything else that the training reads.
            records: filled as by the training.
            train: trains.

        Raises:
            RunError: as training; or the disk is full.
        """
        options = config.training.model_dump(mode="json", exclude=set(NOT_IN_A_FIRST_TASK))

        def look_up() -> list[Any]:
            start, content = dict(backbone.trainable()), data.content(backbone)
            key = digest(self._model(backbone, config), start, options, torch.get_num_threads(), content)
            folder = self.folder / "training" / key
            return [key, _intact(folder) if folder.is_dir() else None]

        key, values = processes.on_main(look_up)
        folder = self.folder / "training" / key
        if values is not None:
            return processes.run_collectively(lambda: self._take(folder, values, backbone, records))
        before, began = records.cost.model_copy(), time.process_time()
        outcome = train()
        values = {
            "steps": outcome.steps,
            "trained": {source: list(counts) for source, counts in outcome.trained.items()},
            "seconds": outcome.seconds,
            "processor_seconds": processes.all_reduce_sum([time.process_time() - began])[0],
            "cost": {key: value - getattr(before, key) for key, value in records.cost.model_dump().items()},
        }
        processes.on_main(lambda: _keep_training(folder, values, backbone, records))
        return outcome

    def _take(self, folder: Path, values: Mapping[str, Any], backbone: Backbone, records: TaskRecords) -> Outcome:
        lines = read_text(folder / "signals.jsonl").splitlines()
        records.signals.extend(SignalRecord.model_validate(parse_json(line)) for line in lines)
        records.trained = {source: list(counts) for source, counts in values["trained"].items()}
        cost = CostRecord.model_validate(values["cost"])
        for name, value in cost.model_dump().items():
            setattr(records.cost, name, getattr(records.cost, name) + value)
        backbone.load_weights(folder / "weights")
        self.saved_seconds += values["processor_seconds"]
        self.reused.append(f"training of {records.task}")
        trained = {source: (counts[0], counts[1]) for source, counts in values["trained"].items()}
        return Outcome(values["steps"], trained, values["seconds"])

    def answer(
        self,
        backbone: Backbone,
        config: RunConfig,
        tasks: Sequence[Task],
        score: Callable[[Sequence[Task]], dict[str, ScoredTask]],
    ) -> dict[str, ScoredTask]:
        """Return the answers to test sets with their scores: those that are there already, and others by ``score``.

        Args:
            tasks: with the labels that answers are chosen from. What a function scores is not kept: two functions may
                have one name.
            score: answers and scores tasks.
        """
        kept = [task for task in tasks if _is_kept(task)]

        def look_up() -> list[Any]:
            start = digest(self._model(backbone, config), weights_digest(backbone), torch.get_num_threads())
            keys = {task.name: self._answers_key(start, config, task) for task in kept}
            return [keys, {name: asdict(taken) for name, key in keys.items() if (taken := self._read(key)) is not None}]

        keys, stored = processes.on_main(look_up)
        known = {name: ScoredTask(tuple(entry["answers"]), tuple(entry["values"])) for name, entry in stored.items()}
        missing = [task for task in tasks if task.name not in known]
        began = time.process_time()
        made = score(missing)
        seconds = processes.all_reduce_sum([time.process_time() - began])[0]
        per_text = seconds / max(sum(len(task.test) for task in missing), 1)

        def keep() -> None:
            for name in keys.keys() & made.keys():
                self._write(keys[name], made[name], per_text * len(made[name].values))

        processes.on_main(keep)
        self.reused += [f"answers to {name}" for name in known]
        merged = known | made
        return {task.name: merged[task.name] for task in tasks if task.name in merged}

    def _answers_key(self, start: str, config: RunConfig, task: Task) -> str:
        evaluation = [
            *(config.evaluation.batch, config.evaluation.engine),
            *(config.training.max_input, config.training.max_target),
        ]
        tested = Task(task.name, train=(), test=task.test, spec=task.spec)
        return digest(start, evaluation, tested.fingerprint(), [example.read for example in task.test])

    def _read(self, key: str) -> ScoredTask | None:
        try:
            value = parse_json(read_text(self.folder / "answers" / f"{key}.json"))
            scored = ScoredTask(tuple(value["answers"]), tuple(value["values"]))
            self.saved_seconds += value["processor_seconds"]
            return scored
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or not whole: it can be made again

    def _write(self, key: str, scored: ScoredTask, seconds: float) -> None:
        make_folder(self.folder / "answers")
        value = {"answers": list(scored.answers), "values": list(scored.values), "processor_seconds": seconds}
        write_json(self.folder / "answers" / f"{key}.json", value, shared=True)

    def _model(self, backbone: Backbone, config: RunConfig) -> list[Any]:
        options = config.model.model_dump(mode="json")
        held = [backbone.precision, backbone.weights, backbone.device.type]
        return [options, self.fingerprint, held, self.versions, self.machine, *_launched()]


def _launched() -> list[Any]:
    """Return how several processes compute together, on which the last bits depend; nothing of one process."""
    if processes.world_size() == 1:
        return []
    sharding = {name: value for name, value in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    return [processes.world_size(), dict(sorted(sharding.items()))]


def _keep_training(folder: Path, values: Mapping[str, Any], backbone: Backbone, records: TaskRecords) -> None:
    make_folder(folder.parent)
    # Another run that has made the same part at the same time has the same bits.
    with contextlib.suppress(TargetTaken), new_folder(folder, shared=True, replace=False) as temporary:
        backbone.save_weights(temporary / "weights")
        write_json_lines(temporary / "signals.jsonl", [signal.model_dump() for signal in records.signals])
        write_json(temporary / OUTCOME, {**values, "files": checksums(temporary)})


def _intact(folder: Path) -> dict[str, Any] | None:
    """Return the outcome of a training whose files are as they were written; of another one nothing is left."""
    try:
        values = parse_json(read_text(folder / OUTCOME))
        if values["files"] == checksums(folder, without={OUTCOME}):
            return dict(values)
    except (OSError, MerganserError, ValueError, KeyError, TypeError):
        pass  # as damaged as one whose checksums differ
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _is_kept(task: Task) -> bool:
    harness = isinstance(task, WatchedTask) and task.harness is not None
    return (
        bool(task.test) and isinstance(task.spec.metric, str) and not is_function_name(task.spec.metric) and not harness
    )


def weights_digest(backbone: Backbone) -> str:
    """Return the SHA-256 of the trained weights; one for all adapters whose update is zero, whatever their seed."""
    weights = backbone.trainable()
    return "zero" if is_zero_update(weights) else digest(dict(weights))


def is_zero_update(weights: Mapping[str, Tensor]) -> bool:
    """Return whether these are the factors of an adapter that changes nothing."""
    factors = {name for name in weights if ".lora_A." in name or ".lora_B." in name}
    return (
        bool(factors)
        and len(factors) == len(weights)
        and not any(bool(weights[name].any()) for name in factors if ".lora_B." in name)
    )


def digest(*values: Any) -> str:
    """Return the SHA-256 of plain values, tensors, and texts or images of a task."""
    hasher = hashlib.sha256()
    _feed(hasher, values)
    return hasher.hexdigest()


def _feed(hasher: hashlib._Hash, value: Any) -> None:
    if isinstance(value, Tensor):
        hasher.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        hasher.update(f"{len(value)} keys".encode())
        for key, inner in value.items():
            hasher.update(json.dumps(key).encode())
            _feed(hasher, inner)
    elif isinstance(value, list | tuple):
        hasher.update(f"{len(value)} items".encode())
        if all(isinstance(inner, int) for inner in value):
            hasher.update(repr(value).encode())
        else:
            for inner in value:
                _feed(hasher, inner)
    else:
        sha256 = getattr(value, "sha256", None)
        hasher.update(f"{type(value).__name__} {sha256 or repr(value)}\n".encode())
