"""Replay the merge decisions of a finished run with other options, from its recorded signals.

With the run's own options the replay equals the ledger exactly. With others it is an estimate:

* probe losses are those of the run: other merges would have left other weights, and so other losses;
* a probe that the run did not take is replaced by the one before it;
* the learning signal of an interval that the run did not have is extrapolated: weights are assumed to change at a
  constant rate between two merges of the run, and after the last one at the last rate. Changes in different directions
  then add up, so that intervals across a merge of the run are overestimated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merganser.control import Merge, MergeController
from merganser.errors import InputError, nearest
from merganser.methods.aim import AimOptions
from merganser.methods.shared.beside import BESIDE
from merganser.runs.record import MergeRecord, RunRecord, SignalRecord
from merganser.settings import described
from merganser.training.aim.config import AimConfig

NEEDS_TRAINING: dict[str, str] = {
    "name": "another method produces other signals",
    "compat": "it sets several options, some of which change the signals; set single options",
    "rehearsal_sampling": "rehearsal with other examples produces other weights",
    **dict.fromkeys(("replay_share", *BESIDE), "other examples beside the training batches produce other weights"),
    "consistency": "another loss on the examples beside the training batches produces other weights",
    "batch": "rehearsal with other batches produces other weights",
    "rehearsal_gradient": "rehearsal with other gradients produces other weights",
    "probe_batch": "probes of another size have other losses",
    "probe_set": "other probes have other losses",
    "probe_dropout": "other probes have other losses",
    "start_weight": "other weights after a merge produce other signals",
    "moments": "other moments of the optimizer produce other weights",
    "fusion": "another fusion produces other weights; when merges fire does not depend on it",
    "important_share": "it changes only the weights, not when merges fire",
    "importance_smoothing": "it changes only the weights, not when merges fire",
    "measure_merges": "it changes only what is measured, not when merges fire",
    "finish_weight": "it changes only the weights that are deployed, not when merges fire",
    "guard_factor": "whether a merge is refused depends on losses after it, which only training yields",
}
"""Options of ``aim`` that a replay cannot change, and why."""

REPLAYABLE = {
    f"{metadata['section']}.{name}".removeprefix("."): name
    for name, _, metadata in described(AimConfig)
    if metadata["section"] is not None and name not in NEEDS_TRAINING
}
"""Options that a replay can change, as a configuration file names them -> settings of ``AimConfig``."""


@dataclass(frozen=True)
class TaskReplay:
    """One task: the merges of the run, and those of the replay.

    Attributes:
        task: its name.
        steps: inner steps recorded.
        actual: the ledger.
        replayed: decisions, in order.
        next_intervals: planned interval after each of them.
        learning_signals: of the interval that each of them ends.
        estimated: how many of those are estimates.
        probes: number of probes that the replay needs.
        replaced_probes: how many of them the run had not taken.
        masks: the weights of the ledger are means over masks, which a replay does not have.
    """

    task: str
    steps: int
    actual: tuple[MergeRecord, ...]
    replayed: tuple[Merge, ...]
    next_intervals: tuple[int, ...]
    learning_signals: tuple[float, ...]
    estimated: int = 0
    probes: int = 0
    replaced_probes: int = 0
    masks: bool = False

    @property
    def same(self) -> bool:
        """Whether the replay made the decisions of the ledger, number for number."""

        def decided(merge: MergeRecord | Merge) -> tuple[Any, ...]:
            probe = merge.forgetting_signal if isinstance(merge, MergeRecord) else merge.probe_loss
            when = merge.step, merge.cause, merge.alarms, merge.threshold, probe
            weights = None if self.masks else (merge.weight_new, merge.weight_old)
            return when, merge.interval, merge.rehearsal_steps, weights

        return (
            [decided(merge) for merge in self.actual] == [decided(merge) for merge in self.replayed]
            and [merge.next_interval for merge in self.actual] == list(self.next_intervals)
            and [merge.learning_signal for merge in self.actual] == list(self.learning_signals)
        )


@dataclass(frozen=True)
class Replay:
    """A replay of a run.

    Attributes:
        config: the settings of the replay.
        changes: option -> (value in the run, value in the replay).
        tasks: task by task; tasks in which the run made no merge are left out.
        without_merges: their names, as far as they have signals.
        masks: the weights of the run's merges are means over masks, which a replay does not have.
    """

    config: AimConfig
    changes: dict[str, tuple[Any, Any]]
    tasks: list[TaskReplay]
    without_merges: list[str] = field(default_factory=list)
    masks: bool = False


class ChangeRates:
    """The rate at which the weights of a task changed: sum of absolute changes per step between the merges of a run."""

    def __init__(self, merges: Sequence[MergeRecord]) -> None:
        self.intervals: list[tuple[int, int, int, float]] = []  # after step, to step, planned interval, signal
        before = 0
        for merge in merges:
            self.intervals.append((before, merge.step, merge.interval, merge.learning_signal))
            before = merge.step

    def signal(self, before: int, step: int, interval: int) -> tuple[float, bool]:
        """Return the learning signal of the interval from ``before`` to ``step``, and whether it is the run's own."""
        moved = 0.0
        for first, last, planned, signal in self.intervals:
            if (first, last, planned) == (before, step, interval):
                return signal, True
            rate = signal * planned / max(1, last - first)
            moved += rate * max(0, min(step, last) - max(before, first))
        _, end, planned, signal = self.intervals[-1]
        if step > end:
            rate = signal * planned / max(1, end - self.intervals[-1][0])
            moved += rate * (step - max(before, end))
        return moved / interval, False


def replay_task(
    controller: MergeController,
    signals: Sequence[SignalRecord],
    merges: Sequence[MergeRecord],
    merge_at_end: bool = False,
    masks: bool = False,
) -> TaskReplay:
    """Replay the decisions of a controller on the recorded signals of a task.

    Args:
        controller: a fresh one.
        signals: one per inner step, in order.
        merges: those of the run, in order; at least one. Refused ones count as the others: the controller
            continued from them likewise.
        merge_at_end: whether the method merges after the last step.
        masks: see :class:`TaskReplay`.
    """
    rates = ChangeRates(merges)
    decisions: list[Merge] = []
    intervals: list[int] = []
    learning: list[float] = []
    estimated = probes = replaced_probes = before = 0
    last_probe: float | None = None
    for signal in signals:
        last_probe = last_probe if signal.probe is None else signal.probe
        probe = None
        if controller.wants_probe():
            probe = last_probe
            probes += 1
            replaced_probes += signal.probe is None
        decision = controller.observe(signal.step, probe)
        if decision is None and merge_at_end and signal is signals[-1]:
            decision = controller.finish(signal.step)
            if decision is not None and merges[-1].cause == "end":  # without rehearsal, if the learning rate was 0
                decision = dataclasses.replace(decision, rehearsal_steps=merges[-1].rehearsal_steps)
        if decision is None:
            continue
        moved, recorded = rates.signal(before, decision.step, decision.interval)
        estimated += not recorded
        decisions.append(decision)
        learning.append(moved)
        intervals.append(controller.record(moved))
        before = decision.step
    return TaskReplay(
        task=merges[0].task,
        steps=len(signals),
        actual=tuple(merges),
        replayed=tuple(decisions),
        next_intervals=tuple(intervals),
        learning_signals=tuple(learning),
        estimated=estimated,
        probes=probes,
        replaced_probes=replaced_probes,
        masks=masks,
    )


def replay(run: RunRecord, changes: Mapping[str, Any] | None = None, task: str | None = None) -> Replay:
    """Replay the merges of a run with changed options.

    Args:
        changes: options of ``aim`` that the controller reads (:data:`REPLAYABLE`) -> their new values.
        task: only this one.

    Raises:
        InputError: the run's method is not ``aim``; it made no merge, or none in the task; an option is unknown, would
            need training, or has an impossible value; probes are needed that the run did not take.
    """
    config = run.info.config["method"]
    if config["name"] != "aim":
        raise InputError(
            f"'{run.path}' was learned with method {config['name']}, which has no merge controller.",
            "Only a run of method aim can be replayed.",
        )
    options = AimOptions.model_validate(config)
    before = options.config()
    now = _changed(before, changes or {})
    merges = _of_controller(run.merges, options.finish_weight is not None)
    merged = list(dict.fromkeys(merge.task for merge in merges))
    signals = {name: records for name, records in run.signals.items() if records}
    if not merged:
        raise InputError(
            f"'{run.path}' made no merge, so that the rate at which its weights change is unknown.",
            "A run has merges from its second task on, if it is long enough for an interval.",
        )
    if task is not None and task not in merged:
        hint = nearest(task, merged)
        raise InputError(
            f"'{run.path}' made no merge in a task '{task}'.", f"{hint} Tasks with merges: {', '.join(merged)}.".strip()
        )
    chosen = merged if task is None else [task]
    for name in chosen:
        _check_probes(before, now, name, signals.get(name, []))
    masks = before.fusion == "importance_masks"
    at_end = now.merge_at_end or now.only_at_end
    return Replay(
        config=now,
        changes={
            option: (getattr(before, name), getattr(now, name))
            for option, name in REPLAYABLE.items()
            if option in (changes or {}) and getattr(before, name) != getattr(now, name)
        },
        tasks=[
            replay_task(
                MergeController(now),
                sorted(signals[name], key=lambda signal: signal.step),
                sorted((merge for merge in merges if merge.task == name), key=lambda merge: merge.merge),
                at_end,
                masks,
            )
            for name in chosen
        ],
        without_merges=[name for name in signals if name not in merged] if task is None else [],
        masks=masks,
    )


def _of_controller(merges: Sequence[MergeRecord], finished: bool) -> list[MergeRecord]:
    """Leave out the last merge of every task, where that is the one of ``finish_weight``."""
    last = {merge.task: merge.merge for merge in merges} if finished else {}
    return [merge for merge in merges if merge.merge != last.get(merge.task)]


def _changed(before: AimConfig, changes: Mapping[str, Any]) -> AimConfig:
    for option in changes:
        if option in REPLAYABLE:
            continue
        if reason := NEEDS_TRAINING.get(option):
            raise InputError(f"A replay cannot change '{option}': {reason}.", "Train a run with it.")
        inner = next((path for path, name in REPLAYABLE.items() if name == option), None)
        remedy = f"Did you mean '{inner}'?" if inner else nearest(option, REPLAYABLE)
        raise InputError(
            f"Method aim has no option '{option}'.", remedy or f"A replay can change {', '.join(REPLAYABLE)}."
        )
    try:
        return before.changed(**{REPLAYABLE[option]: value for option, value in changes.items()})
    except ValueError as error:
        raise InputError(f"--set: {error}.", "`merganser schema` describes every option.") from error


def _check_probes(before: AimConfig, now: AimConfig, task: str, signals: Sequence[SignalRecord]) -> None:
    """Raise InputError where the settings need probes that the run did not take."""
    if not signals:
        raise InputError(f"There are no signals of task '{task}'.", "They are in its signals.jsonl; restore it.")
    if not now.watch_forgetting or now.only_at_end:
        return
    if all(signal.probe is None for signal in signals):
        name = "only_at_end" if before.only_at_end else "watch_forgetting"
        value = str(getattr(before, name)).lower()
        raise InputError(
            f"The run took no probes in task '{task}' (ablation.{name}: {value}), and these options decide by them.",
            "Set ablation.watch_forgetting=false, or train a run that probes.",
        )
    # How many steps lie between two probes of the longest interval, which is where sparse ones differ most.
    longest = max([now.interval, *(signal.interval or 1 for signal in signals)])

    def distance(config: AimConfig) -> int:
        return config.probe_every or (longest // config.probes_per_interval if config.probes_per_interval else 1)

    denser = distance(now) < distance(before)
    if denser:
        was = (
            f"every {before.probe_every or 1} steps"
            if before.probes_per_interval is None
            else f"{before.probes_per_interval} times per interval"
        )
        raise InputError(
            f"The run probed {was}, and these options probe more often.", "Train a run that probes as often."
        )
