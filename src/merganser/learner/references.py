"""Single-task references: scores of a fresh model trained on each task alone, for AimMerging's forward transfer.

They cost as much as learning the stream again, so they are measured only when asked for, and kept: in the run, and in
the user's cache, from which other methods on the same stream read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merganser import processes
from merganser.errors import InputError
from merganser.events import ALONE, Notice, StepDone, TaskStarted
from merganser.files.atomic import write_json
from merganser.files.cache import cache_folder, make_cache
from merganser.files.documents import parse_json, read_text
from merganser.learner.session import Session
from merganser.learner.train_row import mixture_of, train_shared
from merganser.metrics.function import is_function_name
from merganser.metrics.score import Score
from merganser.streams.task import Task
from merganser.training.determinism import derive_seed
from merganser.training.dpo import References
from merganser.training.options import MAY_CHANGE
from merganser.training.progress_callback import ProgressCallback
from merganser.training.records import TaskRecords
from merganser.training.trainer import Outcome, TaskHooks, planned_steps, train_task


def _key(session: Session, task: Task, seed: int) -> str:
    """Return a digest of everything that the score of a model trained on the task alone depends on."""
    info = session.directory.info
    parts = {
        "task": task.fingerprint(),
        "seed": seed,
        "model": session.config.model.model_dump(mode="json"),
        "start": derive_seed(session.config.seed, "model"),
        "training": session.config.training.model_dump(mode="json", exclude=set(MAY_CHANGE)),
        "precision": session.backbone.precision,
        "weights": session.backbone.weights,
        "adapter": info.config.get("resolved", {}).get("adapter_sha256"),
        "versions": {name: info.versions.get(name) for name in ("merganser", "torch", "transformers", "peft")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def measure_references(session: Session, tasks: Sequence[Task]) -> dict[str, Score]:
    """Score a fresh model trained on each task alone, and write the scores into the run.

    The same training as in the run: budget, data order and dropout are those that the task had (or will have) there.

    Args:
        tasks: with their training texts; those without a test set are skipped.

    Raises:
        InputError: the run has not been started (nothing was measured or learned in it).
        RunError: a loss became not finite.
    """
    if not session.rows:
        raise InputError(f"Nothing was learned yet in '{session.directory.path}'.", "Learn the stream first.")
    references = session.directory.references()
    position = session.learned_in()
    for number, task in enumerate(tasks, 1):
        if not task.test or task.name in references:
            continue
        row = number if session.method.joint else position.get(task.name, number)
        seed = derive_seed(session.config.seed, "task", row)
        cached = cache_folder("references") / f"{_key(session, task, seed)}.json"
        # Two functions may have one name: what one of them scored is not kept for other runs.
        cacheable = isinstance(task.spec.metric, str) and not is_function_name(task.spec.metric)
        cached_score = _read_cached(cached) if cacheable else None
        if cached_score is not None:
            references[task.name] = Score.model_validate(cached_score)
            session.listener(Notice(f"Single-task score of '{task.name}' found in the cache."))
        else:
            references[task.name] = _train_alone(session, task, number, seed)
            if cacheable:
                _write_cached(cached, references[task.name])
        session.directory.write_references(references)
    session.restore()
    return references


@processes.main_only
def _read_cached(file: Path) -> dict[str, Any] | None:
    """Return the score in the cache; ``None`` where there is none, or none that is whole: it can be measured again."""
    try:
        return Score.model_validate(parse_json(read_text(file))).model_dump()
    except (OSError, ValueError):  # pydantic's errors are ValueErrors
        return None


@processes.main_only
def _write_cached(file: Path, score: Score) -> None:
    make_cache(file.parent)
    write_json(file, score.model_dump(), shared=True)


def _train_alone(session: Session, task: Task, number: int, seed: int) -> Score:
    session.backbone.prepare_labels(task.train, task.spec)
    features = session.backbone.features(task.train, task.spec)
    steps = planned_steps(task.rows_per_epoch, session.config.training)
    session.listener(TaskStarted(f"{task.name}{ALONE}", number, len(features), 0, steps))
    session.use(session.rows[0])
    session.weights_changed()
    References(features).measure(session.backbone, session.config.evaluation.batch)

    def only_steps(event: object) -> None:
        if isinstance(event, StepDone):
            session.listener(event)

    records = TaskRecords(f"{task.name}{ALONE}", number, only_steps)
    hooks = TaskHooks([ProgressCallback(records)])
    mixture = mixture_of(session, task)

    def train() -> Outcome:
        return train_task(
            session.backbone,
            features,
            session.config.training,
            seed=seed,
            records=records,
            hooks=hooks,
            mixture=mixture,
        )

    train_shared(session, features, mixture, seed, records, train)
    return session.score([task], {})[task.name]
