"""Compare the intervals in the training options with the steps of the tasks, before any work."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.events import Notice
from merganser.learner.checks import selects
from merganser.learner.session import Session
from merganser.streams.task import Task
from merganser.training.options import TrainingOptions, fitting_warmup
from merganser.training.trainer import planned_steps, steps_per_epoch


def note_timing(session: Session, tasks: Sequence[Task]) -> None:
    """Report intervals as long as a task, or longer; each only once for a task in this session."""
    options = session.config.training
    groups = [list(tasks)] if session.method.joint else [[task] for task in tasks]
    stored = len(session.memory()) if session.method.joint else 0
    for kind, remark in (("warmup", _warmup), ("checkpoints", _checkpoints), ("selection", _selection)):
        affected_by_text: dict[str, list[Task]] = {}
        for group in groups:
            if not group or (remark is _selection and not selects(session, group)):
                continue
            examples = stored + sum(task.rows_per_epoch for task in group)
            text = remark(options, planned_steps(examples, options), steps_per_epoch(examples, options))
            if text is not None and (kind, group[0].name) not in session.noted:
                session.noted.add((kind, group[0].name))
                affected_by_text.setdefault(text, []).append(group[0])
        for text, affected in affected_by_text.items():
            more = f" (and {len(affected) - 1} more)" if len(affected) > 1 else ""
            session.listener(Notice(f"Task '{affected[0].name}'{more} takes {text}"))


def _taking(steps: int, text: str) -> str:
    return f"{steps} optimizer step{'s' if steps != 1 else ''}, and {text}"


def _warmup(options: TrainingOptions, steps: int, epoch: int) -> str | None:
    fitting = fitting_warmup(options, steps)
    if fitting == options.warmup:
        return None
    return _taking(
        steps,
        f"training.warmup is {options.warmup:g}: the learning rate would never reach {options.learning_rate:g}, so it "
        f"warms up for {fitting:g} instead (a tenth of the steps).",
    )


def _checkpoints(options: TrainingOptions, steps: int, epoch: int) -> str | None:
    if options.checkpoint_steps is None or options.checkpoint_steps <= steps:
        return None
    by_time = options.checkpoint_minutes is not None
    effect = "only training.checkpoint_minutes has an effect" if by_time else "none is written"
    return _taking(steps, f"training.checkpoint_steps is {options.checkpoint_steps}: {effect}.")


def _selection(options: TrainingOptions, steps: int, epoch: int) -> str | None:
    every = options.select_every or epoch
    if every < steps:
        return None
    interval = "once per epoch" if options.select_every is None else f"every {every} steps"
    effect = "only the last ones" if options.select_last else "none, so that the last ones are deployed"
    return _taking(steps, f"training.select_best evaluates weights {interval}: {effect}.")
