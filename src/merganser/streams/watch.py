"""Watched tasks: scored after every row and never learned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from merganser.errors import InputError
from merganser.streams.checks import check_names, check_task
from merganser.streams.formats import HUB, parse_hub
from merganser.streams.loading import load_task
from merganser.streams.options import StreamOptions
from merganser.streams.task import Example, Task
from merganser.streams.watch_options import Group, HarnessOptions, WatchOptions


@dataclass(frozen=True)
class WatchedTask(Task):
    """A task that is scored after every row and never learned: what the model knew before, and should keep.

    Attributes:
        train: none.
        group: general ability, instruction following or safety, or ``None``.
        harness: the task of lm-evaluation-harness that scores; ``None``: ``test`` and ``spec`` do.
    """

    train: Sequence[Example] = ()
    group: Group | None = None
    harness: HarnessOptions | None = None

    def fingerprint(self) -> str:
        """Compute the SHA-256 of everything that influences its score; folders do not count."""
        digest = Task.fingerprint(self)
        if self.harness is None:
            return digest
        asked = self.harness.model_dump_json(exclude={"folder"})
        return hashlib.sha256(f"{digest}\0{asked}".encode()).hexdigest()

    def as_learned(self) -> Task:
        """Return a task with the test examples as training examples, for checks that look at those."""
        return Task(self.name, train=self.test, spec=self.spec)


def check_watched(task: WatchedTask) -> None:
    """Refuse a watched task that cannot be scored.

    Raises:
        InputError: no test examples, training examples, or as :func:`~merganser.streams.checks.check_task`.
    """
    if task.train or task.dev or task.mix is not None:
        raise InputError(f"Task '{task.name}' is watched and has examples to learn.", "Leave all but 'test' out.")
    if not task.test:
        raise InputError(f"Watched task '{task.name}' has no test examples.", "Give it at least one.")
    check_task(task.as_learned())


def load_watched(options: StreamOptions, base: Path) -> tuple[WatchedTask, ...]:
    """Read the watched tasks of a stream. Those of lm-evaluation-harness are read when they are first needed.

    Args:
        options: the stream.
        base: folder that relative paths start from.

    Raises:
        InputError: as :func:`~merganser.streams.loading.load_task`.
    """
    watched = tuple(_load(entry, options, base) for entry in options.watch)
    check_names([task.name for task in watched])
    return watched


def _load(options: WatchOptions, stream: StreamOptions, base: Path) -> WatchedTask:
    if options.lm_eval is not None:
        folder = options.lm_eval.folder
        update = {
            "limit": options.lm_eval.limit or options.limit_test or stream.limit_test,
            "folder": None if folder is None else str((base / folder).resolve()),
        }
        return WatchedTask(options.title, group=options.group, harness=options.lm_eval.model_copy(update=update))
    test = options.test or ""
    if test.startswith(HUB):
        name, configuration, split = parse_hub(test, "test")
        test = f"{HUB}{name}:{configuration or ''}:{split}"
    task = load_task(options.as_task(test, stream.limit_test, stream.limit_seed, stream.on_bad_rows), base)
    source = {part.replace("train", "test", 1): value for part, value in task.source.items()}
    watched = WatchedTask(task.name, test=task.train, spec=task.spec, source=source, remarks=task.remarks)
    return replace(watched, group=options.group)
