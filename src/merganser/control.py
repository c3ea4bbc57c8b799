"""The merge controller of AimMerging: when to merge, how often, and how strongly.

Pure arithmetic on two signals of the training trajectory; it imports neither torch nor numpy. The same object decides
during training, replays a ledger, and is tested against recorded traces.

Source: Feng et al., "AIMMerging: Adaptive Iterative Model Merging Using Training Trajectories for Language Model
Continual Learning", EMNLP 2025 (arXiv 2509.17348), and the behaviour of the program released with it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Cause = Literal["due", "early", "forced", "end"]

CAUSES: dict[str, str] = {
    "due": "on or after the planned step, with at least one alarm",
    "early": "enough alarms before the planned step",
    "forced": "a whole further interval went by without an alarm",
    "end": "after the last step of the task",
}
"""What each cause of a merge means, as the page, the figures, the live view and the documentation state it."""


@dataclass(frozen=True, slots=True)
class WeightTable:
    """Weight of the new task's update at a merge; the old tasks' update gets one minus it, unless told otherwise.

    *moving*: the planned interval is still short, the current task is still changing the weights a lot.
    *alarmed*: more than one alarm was raised since the last merge, what was learned before is in danger.
    """

    moving_alarmed: float = 0.5
    moving_calm: float = 0.6
    settled_alarmed: float = 0.4
    settled_calm: float = 0.5

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{item.name} is {value}; a merging weight lies between 0 and 1")


@dataclass(frozen=True, slots=True)
class Merge:
    """A decision to merge, taken by :meth:`MergeController.observe`.

    Attributes:
        step: inner step after which the merge fires (1-based, within the task).
        cause: ``due`` (planned step reached with at least one alarm), ``early`` (enough alarms before the planned
            step), ``forced`` (no alarm for a whole extra interval) or ``end`` (:meth:`MergeController.finish`).
        alarms: alarms raised since the last merge, the forced one included.
        interval: planned interval in force (inner steps).
        rehearsal_steps: optimizer steps to take on the memory before merging.
        weight_new, weight_old: weights of the two updates in the merge.
        probe_loss: the last probe loss (nats), or ``None`` if nothing was probed since the last merge.
        threshold: loss at and above which an alarm was raised, or ``None`` while it was not yet known.
    """

    step: int
    cause: Cause
    alarms: int
    interval: int
    rehearsal_steps: int
    weight_new: float
    weight_old: float
    probe_loss: float | None = None
    threshold: float | None = None


class MergeController:
    """Decides when a merge fires and adapts the interval between merges.

    Feed :meth:`observe` once per inner step. When it returns a :class:`Merge`, rehearse, merge, and report the learning
    signal of the finished interval with :meth:`record`.

    Args:
        interval: planned interval at the start of a task, in inner steps.
        cold_start: number of earlier merges below or at which the interval is left alone.
        min_interval, max_interval: bounds of the planned interval.
        threshold_factor: an alarm is raised when the probe loss reaches this multiple of its mean over the first part
            of the interval.
        warmup_fraction: that first part, as a share of the planned interval.
        early_alarms: number of alarms at which a merge fires before it is due.
        moving_until: planned intervals up to this one count as *moving* in the weight table.
        alarmed_above: more alarms than this count as *alarmed* in the weight table.
        halve_from: a shortened interval that is still this long is halved; a lengthened one that is this long grows by
            ``growth_long`` instead of ``growth_short``.
        growth_short, growth_long: added to the ratio of learning signals when the interval is lengthened.
        weights: the weight table.
        weight_old: weight of the rehearsal's update at every merge. ``None``: one minus that of the new task's update.
        rehearsal_steps: steps on the memory at the first merges; later ones keep its ratio to ``interval``. ``None``:
            as many as ``interval``. 0: never rehearse.
        minimum_rehearsal_steps: where the ratio would leave fewer after a short interval, so many are taken (0: as
            the released program, which may then merge without rehearsing).
        adapt_interval: ``False`` keeps the interval fixed (the ablation without the learning signal).
        watch_forgetting: ``False`` ignores probe losses and merges whenever a merge is due (the ablation without the
            forgetting signal).
        probe_every: probe after every so many inner steps, counted from the last merge. Everything is still counted in
            steps: a step that is not probed is judged by the probe before it, so that alarms mean the same at any
            rate of probing. Probes are never so far apart that the threshold would be known later than with a probe
            after every step. 1: after every step, as in the paper.
        probes_per_interval: instead, so many probes per planned interval, evenly: the longer the interval, the fewer
            steps are probed.
        only_at_end: nothing fires before :meth:`finish`, and nothing is probed.

    Raises:
        ValueError: a value is impossible (named in the message).
    """

    def __init__(
        self,
        interval: int = 8,
        cold_start: int = 3,
        min_interval: int = 2,
        max_interval: int = 128,
        threshold_factor: float = 2.0,
        *,
        warmup_fraction: float = 2 / 3,
        early_alarms: int = 3,
        moving_until: int = 70,
        alarmed_above: int = 1,
        halve_from: int = 64,
        growth_short: float = 1.0,
        growth_long: float = 0.5,
        weights: WeightTable | None = None,
        weight_old: float | None = None,
        rehearsal_steps: int | None = None,
        minimum_rehearsal_steps: int = 1,
        adapt_interval: bool = True,
        watch_forgetting: bool = True,
        probe_every: int = 1,
        probes_per_interval: int | None = None,
        only_at_end: bool = False,
    ) -> None:
        if not 1 <= min_interval <= max_interval:
            raise ValueError(
                f"min_interval {min_interval} and max_interval {max_interval} do not satisfy 1 <= min <= max"
            )
        if interval < 1:
            raise ValueError(f"interval is {interval}; it counts inner steps and must be at least 1")
        if cold_start < 0:
            raise ValueError(f"cold_start is {cold_start}; it counts merges and cannot be negative")
        if not 0 < threshold_factor < math.inf:
            raise ValueError(
                f"threshold_factor is {threshold_factor}; it multiplies a loss and must be positive and finite"
            )
        if not 0.0 <= warmup_fraction <= 1.0:
            raise ValueError(f"warmup_fraction is {warmup_fraction}; it is a share of the interval, between 0 and 1")
        if early_alarms < 1:
            raise ValueError(f"early_alarms is {early_alarms}; at least one alarm is needed")
        if rehearsal_steps is not None and rehearsal_steps < 0:
            raise ValueError(f"rehearsal_steps is {rehearsal_steps}; it cannot be negative")
        if minimum_rehearsal_steps < 0:
            raise ValueError(f"minimum_rehearsal_steps is {minimum_rehearsal_steps}; it cannot be negative")
        if weight_old is not None and not 0.0 <= weight_old <= 1.0:
            raise ValueError(f"weight_old is {weight_old}; a merging weight lies between 0 and 1")
        if probe_every < 1:
            raise ValueError(f"probe_every is {probe_every}; it counts inner steps and must be at least 1")
        if probes_per_interval is not None and probes_per_interval < 1:
            raise ValueError(f"probes_per_interval is {probes_per_interval}; at least one probe is needed")
        if probes_per_interval is not None and probe_every != 1:
            raise ValueError("probe_every and probes_per_interval both say how often to probe: keep one")
        self.initial_interval = interval
        self.cold_start = cold_start
        self.min_interval = min_interval
        self.max_interval = max_interval
        self.threshold_factor = threshold_factor
        self.warmup_fraction = warmup_fraction
        self.early_alarms = early_alarms
        self.moving_until = moving_until
        self.alarmed_above = alarmed_above
        self.halve_from = halve_from
        self.growth_short = growth_short
        self.growth_long = growth_long
        self.weights = weights or WeightTable()
        self.weight_old = weight_old
        self.rehearsal_ratio = (interval if rehearsal_steps is None else rehearsal_steps) / interval
        self.minimum_rehearsal_steps = minimum_rehearsal_steps
        self.adapt_interval = adapt_interval
        self.watch_forgetting = watch_forgetting
        self.probe_every = probe_every
        self.probes_per_interval = probes_per_interval
        self.only_at_end = only_at_end

        self.interval = interval
        self.due_step = interval
        self.threshold: float | None = None
        self.alarms = 0
        self.learning_signals: list[float] = []
        self._steps = 0  # inner steps observed since the last merge (the paper's probe counter)
        self._losses: list[float] = []  # probe losses of the warm-up part of this interval
        self._last_probe: float | None = None
        self._pending: Merge | None = None

    @property
    def rehearsal_steps(self) -> int:
        """Steps on the memory at the next merge; 0 throughout where rehearsal is switched off."""
        if self.rehearsal_ratio == 0:
            return 0
        return max(self.minimum_rehearsal_steps, int(self.interval * self.rehearsal_ratio))

    @property
    def _warmup(self) -> int:
        """Steps after the last merge before the one that sets the threshold."""
        return int(self.interval * self.warmup_fraction)

    @property
    def probe_distance(self) -> int:
        """Inner steps from one probe to the next in the planned interval in force."""
        asked = self.probe_every if self.probes_per_interval is None else self.interval // self.probes_per_interval
        return max(1, min(asked, self._warmup + 1))

    def wants_probe(self) -> bool:
        """Whether the loss on the memory should be probed after the inner step that is observed next."""
        return self.watch_forgetting and not self.only_at_end and (self._steps + 1) % self.probe_distance == 0

    def observe(self, step: int, probe_loss: float | None = None) -> Merge | None:
        """Take note of one inner step.

        Args:
            step: number of the inner step, 1-based within the task.
            probe_loss: loss on a batch of the memory after the step (nats), or ``None`` if this step was not probed:
                the last probe since the merge then stands for it.

        Returns:
            The merge that fires now, or ``None``.

        Raises:
            ValueError: the probe loss is not finite.
            RuntimeError: the merge before was not reported with :meth:`record`.
        """
        if self._pending is not None:
            raise RuntimeError(f"the merge at step {self._pending.step} was not recorded; call record() first")
        if probe_loss is not None and not math.isfinite(probe_loss):
            raise ValueError(f"probe loss at step {step} is {probe_loss}")
        if self.only_at_end:
            self._steps += 1
            return None
        if not self.watch_forgetting:
            self._steps += 1
            return self._fire(step, "due") if step >= self.due_step else None

        forced = False
        if probe_loss is not None:
            self._last_probe = probe_loss
        if self.threshold is not None and self._last_probe is not None:  # armed
            if self._last_probe >= self.threshold:
                self.alarms += 1
            elif step >= self.due_step + self.interval:
                self.alarms += 1
                forced = True
        else:
            if probe_loss is not None:
                self._losses.append(probe_loss)
            if self._steps >= self._warmup and self._losses:
                mean = math.fsum(self._losses) / len(self._losses)
                self.threshold = min(mean * self.threshold_factor, sys.float_info.max)  # must be written down
        self._steps += 1

        if step >= self.due_step and self.alarms >= 1:
            return self._fire(step, "forced" if forced and self.alarms == 1 else "due")
        if self.alarms >= self.early_alarms:
            return self._fire(step, "early")
        return None

    def finish(self, step: int) -> Merge | None:
        """The merge of what was learned since the last one, at the end of a task; ``None`` if that is nothing."""
        return self._fire(step, "end") if self._steps > 0 else None

    def _fire(self, step: int, cause: Cause) -> Merge:
        moving = self.interval <= self.moving_until
        alarmed = self.alarms > self.alarmed_above
        table = self.weights
        if moving:
            weight_new = table.moving_alarmed if alarmed else table.moving_calm
        else:
            weight_new = table.settled_alarmed if alarmed else table.settled_calm
        self._pending = Merge(
            step=step,
            cause=cause,
            alarms=self.alarms,
            interval=self.interval,
            rehearsal_steps=self.rehearsal_steps,
            weight_new=weight_new,
            weight_old=1.0 - weight_new if self.weight_old is None else self.weight_old,
            probe_loss=self._last_probe,
            threshold=self.threshold,
        )
        return self._pending

    def record(self, learning_signal: float) -> int:
        """Report the learning signal of the interval that the last merge ended, and adapt the interval.

        Args:
            learning_signal: sum over trainable weights of their absolute change, divided by the planned interval.

        Returns:
            The next planned interval, in inner steps.

        Raises:
            ValueError: the signal is negative or not finite.
            RuntimeError: no merge is waiting to be recorded.
        """
        if self._pending is None:
            raise RuntimeError("no merge is waiting to be recorded; observe() has not returned one")
        if not math.isfinite(learning_signal) or learning_signal < 0:
            raise ValueError(f"learning signal at step {self._pending.step} is {learning_signal}")
        if self.adapt_interval and len(self.learning_signals) > self.cold_start:
            self.interval = self._adapted(self.learning_signals[-1], learning_signal)
        self.learning_signals.append(learning_signal)
        self.due_step = self._pending.step + self.interval
        self.threshold = None
        self.alarms = 0
        self._steps = 0
        self._losses = []
        self._last_probe = None
        self._pending = None
        return self.interval

    def _adapted(self, before: float, now: float) -> int:
        """The interval after two successive learning signals (Section "Adapting the interval" of the paper)."""
        if now >= before:
            if now == 0:  # nothing moves, and nothing moved before: there is nothing to learn about the pace
                return self.interval
            # A move out of a standstill is infinitely faster: merge as often as allowed.
            interval = self.min_interval if before == 0 else max(self.min_interval, int(self.interval / (now / before)))
            return int(interval / 2) if interval >= self.halve_from else interval
        if now == 0:  # came to a standstill: infinitely slower
            return self.max_interval
        growth = self.growth_short if self.interval < self.halve_from else self.growth_long
        # Bounded before it is cut to a whole number: the ratio may overflow to infinity.
        return int(min(self.max_interval, self.interval * (before / now + growth)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while a task is learned, as plain JSON values."""
        return {
            "interval": self.interval,
            "due_step": self.due_step,
            "threshold": self.threshold,
            "alarms": self.alarms,
            "learning_signals": list(self.learning_signals),
            "steps": self._steps,
            "losses": list(self._losses),
            "last_probe": self._last_probe,
            "pending": None if self._pending is None else asdict(self._pending),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: a key is missing or unknown.
        """
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(f"controller state has keys {sorted(state)}, expected {sorted(expected)}")
        self.interval = int(state["interval"])
        self.due_step = int(state["due_step"])
        self.threshold = state["threshold"]
        self.alarms = int(state["alarms"])
        self.learning_signals = list(state["learning_signals"])
        self._steps = int(state["steps"])
        self._losses = list(state["losses"])
        self._last_probe = state["last_probe"]
        self._pending = None if state["pending"] is None else Merge(**state["pending"])
