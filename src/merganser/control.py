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
from dataclasses import asdict, dataclass
from typing import Any, Literal

from merganser.settings import ABLATION, Settings, setting

Cause = Literal["due", "early", "forced", "end"]

CAUSES: dict[str, str] = {
    "due": "on or after the planned step, with at least one alarm",
    "early": "enough alarms before the planned step",
    "forced": "a whole further interval passed without an alarm",
    "end": "after the last step of the task",
}
"""What each cause of a merge means, as the page, the figures, the live view and the documentation state it."""


IntervalPart = Literal["quarter", "half", "interval"]
"""Steps of rehearsal as a part of the planned interval."""

PARTS: dict[str, int] = {"quarter": 4, "half": 2, "interval": 1}
"""Such a part -> how many of it make an interval."""


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
        threshold: loss from which on an alarm was raised (nats), or ``None`` while it was not yet known.
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


@dataclass(frozen=True)
class ControllerConfig(Settings):
    """The numbers of a :class:`MergeController`; the defaults are the released program's.

    The weight of the new task's update at a merge is one of four. *moving*: the planned interval is still short, so
    the current task still changes the weights a lot; else *settled*. *alarmed*: more than ``alarmed_above`` alarms
    were raised since the last merge, so earlier tasks are being forgotten; else *calm*.

    Alarms are counted per step at any rate of probing: a step that is not probed is judged by the last probe before it.
    Probes are never so far apart that the threshold would be set later than with a probe after every step.

    Raises:
        ValueError: a value is impossible, or two contradict each other.
    """

    interval: int = setting(8, "planned merge interval at the start of a task, in inner steps", ge=1)
    cold_start: int = setting(3, "the interval does not adapt until more merges than this were made", ge=0)
    min_interval: int = setting(2, "shortest planned interval", ge=1)
    max_interval: int = setting(128, "longest planned interval", ge=1)
    threshold_factor: float = setting(2.0, "alarm at this multiple of the interval's first probe losses", gt=0)
    warmup_fraction: float = setting(2 / 3, "share of the interval whose probe losses are averaged", ge=0, le=1)
    early_alarms: int = setting(3, "number of alarms at which a merge fires before it is due", ge=1)
    moving_until: int = setting(70, "intervals up to this count as 'moving' in the weight table", ge=0)
    alarmed_above: int = setting(1, "more alarms than this count as 'alarmed' in the weight table", ge=0)
    halve_from: int = setting(
        64, "a shortened interval of this length or more is halved; from here on, growth_long applies", ge=1
    )
    growth_short: float = setting(1.0, "added to the growth of intervals below halve_from", ge=0)
    growth_long: float = setting(0.5, "added to the growth of intervals from halve_from on", ge=0)
    weight_moving_alarmed: float = setting(0.5, "weight of the new update: moving, alarmed", ge=0, le=1)
    weight_moving_calm: float = setting(0.6, "weight of the new update: moving, calm", ge=0, le=1)
    weight_settled_alarmed: float = setting(0.4, "weight of the new update: settled, alarmed", ge=0, le=1)
    weight_settled_calm: float = setting(0.5, "weight of the new update: settled, calm", ge=0, le=1)
    weight_old: float | None = setting(
        None,
        "weight of the rehearsal's update at every merge; null: one minus that of the new update, as in the released "
        "program",
        ge=0,
        le=1,
    )
    rehearsal_steps: int | IntervalPart = setting(
        "interval",
        "optimizer steps on the memory at the first merges; later ones keep their ratio to the interval; "
        "quarter, half: of it; interval: as many as the interval, as in the released program; 0: none before a merge",
        ge=0,
    )
    minimum_rehearsal_steps: int = setting(
        1, "minimum number of memory steps after a short interval (unless rehearsal_steps is 0)", ge=0
    )
    probes_per_interval: int | None = setting(
        None,
        "probes per planned interval, so that long intervals cost less; steps between two probes use the last one; "
        "null: probe_every applies",
        ge=1,
    )
    probe_every: int | None = setting(
        None,
        "instead of probes_per_interval: inner steps between two probes; both null: 1, as in the released program",
        ge=1,
    )
    adapt_interval: bool = setting(True, "false: fixed interval (without the learning signal)", section=ABLATION)
    watch_forgetting: bool = setting(
        True, "false: merge whenever due, probe nothing (without the forgetting signal)", section=ABLATION
    )
    weight_new: float | None = setting(
        None, "one weight of the new update for every merge, instead of the table's four", ge=0, le=1, section=ABLATION
    )
    only_at_end: bool = setting(
        False, "merge once, after the last step of a task, and at no other time; nothing is probed", section=ABLATION
    )
    merge: bool = setting(
        True, "false: never merge nor rehearse: plain training whose signals are measured as always", section=ABLATION
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_interval > self.max_interval:
            raise ValueError(f"min_interval {self.min_interval} is larger than max_interval {self.max_interval}")
        if self.probe_every is not None and self.probes_per_interval is not None:
            raise ValueError("probe_every and probes_per_interval both set how often to probe: keep one")
        if self.only_at_end and not self.merge:
            raise ValueError("merge: false never merges, and only_at_end merges at the end of a task: keep one")

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Switch off the default of one option of the probing rate where the other one is set."""
        rates = ("probe_every", "probes_per_interval")
        for rate, other in (rates, rates[::-1]):
            if given.get(rate) is not None and other not in given:
                return {other: None}
        return {}

    @property
    def first_rehearsal_steps(self) -> int:
        """Steps on the memory at the first merges."""
        steps = self.rehearsal_steps
        return max(1, self.interval // PARTS[steps]) if isinstance(steps, str) else steps


def weight_case(config: ControllerConfig, interval: int, alarms: int) -> tuple[bool, bool]:
    """Return whether a merge is *moving* and whether it is *alarmed*: the row and column of the table of weights.

    Args:
        config: the numbers.
        interval: planned interval in force (inner steps).
        alarms: raised since the last merge.
    """
    return interval <= config.moving_until, alarms > config.alarmed_above


class MergeController:
    """Decides when a merge fires and adapts the interval between merges.

    Feed :meth:`observe` once per inner step. When it returns a :class:`Merge`, rehearse, merge, and report the learning
    signal of the finished interval with :meth:`record`.

    Args:
        config: its numbers; by default the released program's.
        **settings: fields of :class:`ControllerConfig` that replace those of ``config``.

    Raises:
        ValueError: a value is impossible (named in the message).
        TypeError: there is no such setting.
    """

    def __init__(self, config: ControllerConfig | None = None, **settings: Any) -> None:
        self.config = (config or ControllerConfig()).changed(**settings)
        self.interval = self.config.interval
        self.due_step = self.interval
        self.threshold: float | None = None
        self.alarms = 0
        self.learning_signals: list[float] = []
        self._rehearsal_ratio = self.config.first_rehearsal_steps / self.config.interval
        self._steps = 0  # inner steps observed since the last merge (the probe counter)
        self._losses: list[float] = []  # probe losses of the warm-up part of this interval
        self._last_probe: float | None = None
        self._pending: Merge | None = None

    @property
    def rehearsal_steps(self) -> int:
        """Steps on the memory at the next merge; 0 throughout where rehearsal is switched off."""
        if self._rehearsal_ratio == 0:
            return 0
        return max(self.config.minimum_rehearsal_steps, int(self.interval * self._rehearsal_ratio))

    @property
    def _warmup(self) -> int:
        """Steps after the last merge before the one that sets the threshold."""
        return int(self.interval * self.config.warmup_fraction)

    @property
    def probe_distance(self) -> int:
        """Inner steps from one probe to the next in the planned interval in force."""
        per_interval = self.config.probes_per_interval
        distance = self.config.probe_every or 1 if per_interval is None else self.interval // per_interval
        return max(1, min(distance, self._warmup + 1))

    def wants_probe(self) -> bool:
        """Return whether the loss on the memory should be probed after the inner step that is observed next."""
        return (
            self.config.watch_forgetting
            and not self.config.only_at_end
            and (self._steps + 1) % self.probe_distance == 0
        )

    def observe(self, step: int, probe_loss: float | None = None) -> Merge | None:
        """Observe one inner step.

        Args:
            step: number of the inner step, 1-based within the task.
            probe_loss: loss on a batch of the memory after the step (nats), or ``None`` if this step was not probed:
                the last probe since the merge is then used again.

        Returns:
            The merge that fires now, or ``None``.

        Raises:
            ValueError: the probe loss is not finite.
            RuntimeError: the previous merge was not reported with :meth:`record`.
        """
        if self._pending is not None:
            raise RuntimeError(f"The merge at step {self._pending.step} was not recorded; call record() first.")
        if probe_loss is not None and not math.isfinite(probe_loss):
            raise ValueError(f"The probe loss at step {step} is {probe_loss}.")
        if self.config.only_at_end or not self.config.merge:
            self._steps += 1
            return None
        if not self.config.watch_forgetting:
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
                self.threshold = min(mean * self.config.threshold_factor, sys.float_info.max)  # JSON has no infinity
        self._steps += 1

        if step >= self.due_step and self.alarms >= 1:
            return self._fire(step, "forced" if forced and self.alarms == 1 else "due")
        if self.alarms >= self.config.early_alarms:
            return self._fire(step, "early")
        return None

    def finish(self, step: int) -> Merge | None:
        """Return the merge of the steps since the last one, at the end of a task; ``None``: nothing to merge."""
        return self._fire(step, "end") if self._steps > 0 and self.config.merge else None

    def _fire(self, step: int, cause: Cause) -> Merge:
        weight_new, weight_old = self._weight_new(), self.config.weight_old
        self._pending = Merge(
            step=step,
            cause=cause,
            alarms=self.alarms,
            interval=self.interval,
            rehearsal_steps=self.rehearsal_steps,
            weight_new=weight_new,
            weight_old=1.0 - weight_new if weight_old is None else weight_old,
            probe_loss=self._last_probe,
            threshold=self.threshold,
        )
        return self._pending

    def _weight_new(self) -> float:
        """Return the weight of the new update at a merge that fires now."""
        config = self.config
        if config.weight_new is not None:
            return config.weight_new
        moving, alarmed = weight_case(config, self.interval, self.alarms)
        if moving:
            return config.weight_moving_alarmed if alarmed else config.weight_moving_calm
        return config.weight_settled_alarmed if alarmed else config.weight_settled_calm

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
            raise RuntimeError("No merge is waiting to be recorded; observe() has not returned one.")
        if not math.isfinite(learning_signal) or learning_signal < 0:
            raise ValueError(f"The learning signal at step {self._pending.step} is {learning_signal}.")
        if self.config.adapt_interval and len(self.learning_signals) > self.config.cold_start:
            self.interval = self._adapt_interval(self.learning_signals[-1], learning_signal)
        self.learning_signals.append(learning_signal)
        self.due_step = self._pending.step + self.interval
        self.threshold = None
        self.alarms = 0
        self._steps = 0
        self._losses = []
        self._last_probe = None
        self._pending = None
        return self.interval

    def _adapt_interval(self, previous: float, current: float) -> int:
        """Return the interval after two successive learning signals (Section "Adapting the interval" of the paper)."""
        config = self.config
        if current >= previous:
            if current == 0:  # no change in either interval: nothing to adapt to
                return self.interval
            # From no change to some change the ratio is infinite: merge as often as allowed.
            shortened = 0 if previous == 0 else int(self.interval / (current / previous))
            interval = max(config.min_interval, shortened)
            return int(interval / 2) if interval >= config.halve_from else interval
        if current == 0:  # the weights stopped changing: merge as rarely as allowed
            return config.max_interval
        growth = config.growth_short if self.interval < config.halve_from else config.growth_long
        # Bounded before the conversion to an integer: the ratio may overflow to infinity.
        return int(min(config.max_interval, self.interval * (previous / current + growth)))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes while a task is trained, as plain JSON values."""
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
            raise ValueError(f"The controller's state has keys {sorted(state)}, expected {sorted(expected)}.")
        self.interval = int(state["interval"])
        self.due_step = int(state["due_step"])
        self.threshold = state["threshold"]
        self.alarms = int(state["alarms"])
        self.learning_signals = list(state["learning_signals"])
        self._steps = int(state["steps"])
        self._losses = list(state["losses"])
        self._last_probe = state["last_probe"]
        self._pending = None if state["pending"] is None else Merge(**state["pending"])
