"""AimMerging as a method of a run: the callback, with every number of the paper as an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from merganser.control import MergeController, WeightTable
from merganser.methods.base import Method, MethodOptions, Signals, TaskContext
from merganser.training.determinism import derive_seed
from merganser.training.options import GUARD_FACTOR, Fusion, ProbeSet, RehearsalSampling, TrainingOptions, check_batch
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.aim.callback import AimMerging


COMPAT: dict[str, dict[str, Any]] = {
    "reference": {
        "minimum_rehearsal_steps": 0,
        "rehearsal_sampling": "iid",
        "probe_batch": None,
        "probe_every": 1,
        "probes_per_interval": None,
        "probe_set": "fresh",
        "probe_dropout": True,
        "merge_at_end": False,
        "weight_old": None,
        "guard_factor": None,
    },
}
"""Options that each value of ``compat`` sets; what is not among them can be chosen freely."""


REHEARSAL_SHARE = 2
"""Inner steps of the planned interval per rehearsal step, by default (docs/methods/aim.md, where it differs)."""


class AimOptions(MethodOptions):
    """AimMerging; the controller's defaults are the paper's numbers, those of probing and rehearsal are cheaper."""

    name: Literal["aim"] = "aim"
    compat: Literal["reference"] | None = Field(
        None,
        description="reference: in every point as the program released with the paper; sets the options concerned, and "
        "the sampler of the memory",
    )
    interval: int = Field(8, ge=1, description="planned merge interval at the start of a task, in inner steps")
    cold_start: int = Field(3, ge=0, description="the interval is left alone until more merges than this were made")
    min_interval: int = Field(2, ge=1, description="shortest planned interval")
    max_interval: int = Field(128, ge=1, description="longest planned interval")
    threshold_factor: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="alarm at this multiple of the interval's first probe losses"
    )
    warmup_fraction: float = Field(
        2 / 3, ge=0, le=1, description="share of the interval whose probe losses are averaged"
    )
    early_alarms: int = Field(3, ge=1, description="alarms at which a merge fires before it is due")
    moving_until: int = Field(70, ge=0, description="intervals up to this count as 'moving' in the weight table")
    alarmed_above: int = Field(1, ge=0, description="more alarms than this count as 'alarmed' in the weight table")
    halve_from: int = Field(64, ge=1, description="shortened intervals still this long are halved; growth slows here")
    growth_short: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="added to the growth of intervals below halve_from"
    )
    growth_long: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="added to the growth of intervals from halve_from on"
    )
    weight_moving_alarmed: float = Field(0.5, ge=0, le=1, description="weight of the new update: moving, alarmed")
    weight_moving_calm: float = Field(0.6, ge=0, le=1, description="weight of the new update: moving, calm")
    weight_settled_alarmed: float = Field(0.4, ge=0, le=1, description="weight of the new update: settled, alarmed")
    weight_settled_calm: float = Field(0.5, ge=0, le=1, description="weight of the new update: settled, calm")
    weight_new: float | None = Field(
        None, ge=0, le=1, description="one weight of the new update for every merge, instead of the four above"
    )
    weight_old: float | None = Field(
        1.0,
        ge=0,
        le=1,
        description="weight of the rehearsal's update at every merge; null: one minus that of the new update, as in "
        "the paper",
    )
    rehearsal_steps: int | None = Field(
        None,
        ge=0,
        description="memory steps at the first merges, kept in ratio to the interval; null: half of the interval, "
        "with compat: reference as many",
    )
    minimum_rehearsal_steps: int = Field(
        1, ge=0, description="memory steps at least, where the ratio would leave fewer (unless rehearsal_steps is 0)"
    )
    rehearsal_sampling: RehearsalSampling = Field(
        "epoch",
        description="epoch: every example once per pass over the memory, in a new order; iid: independent draws",
    )
    adapt_interval: bool = Field(True, description="false: fixed interval (ablation without the learning signal)")
    watch_forgetting: bool = Field(
        True, description="false: merge whenever due (ablation without the forgetting signal)"
    )
    batch: int | None = Field(
        None, gt=0, description="memory examples per rehearsal step; null: the training batch, or the memory if smaller"
    )
    probe_batch: int | None = Field(None, gt=0, description="memory examples per probe; null: as in rehearsal")
    probes_per_interval: int | None = Field(
        2,
        ge=1,
        description="probes per planned interval, so that long ones cost less; steps between are judged by the last "
        "probe. null: as probe_every says",
    )
    probe_every: int | None = Field(
        None, ge=1, description="instead: inner steps from one probe to the next; with both null: 1"
    )
    probe_set: ProbeSet = Field(
        "fixed",
        description="fresh: a random batch of the memory for every probe; fixed: one batch per task, spread over old "
        "tasks and their labels",
    )
    probe_dropout: bool = Field(False, description="leave dropout on while probing, as the released program does")
    merge_at_end: bool = Field(True, description="merge once more after the last step of a task")
    only_at_end: bool = Field(
        False, description="merge once, after the last step of a task, and at no other time; nothing is probed"
    )
    fusion: Fusion = Field(
        "trajectory",
        description="trajectory: two weights for all parameters; importance_masks: every parameter goes the way of the "
        "phase that it is important to (Recurrent-KIF)",
    )
    important_share: float = Field(
        0.2, gt=0, le=1, description="importance_masks: share of the parameters that are important to a phase"
    )
    importance_smoothing: float = Field(
        0.85, ge=0, lt=1, description="importance_masks: share of the past in the averages of importance"
    )
    measure_merges: bool = Field(
        True, description="measure losses before and after each merge, for the ledger and for guard_factor"
    )
    guard_factor: float | None = Field(
        GUARD_FACTOR,
        gt=1,
        allow_inf_nan=False,
        description="a merge that makes a loss more than this many times what it was is refused; null: only one that "
        "leaves a loss that is not finite (the default with measure_merges: false and with only_at_end)",
    )

    @model_validator(mode="before")
    @classmethod
    def _compat(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if values.get("probe_every") is not None and "probes_per_interval" not in values:
            values = {**values, "probes_per_interval": None}
        compat = values.get("compat")
        if not isinstance(compat, str) or compat not in COMPAT:
            return values
        for key, value in COMPAT[compat].items():
            if key in values and values[key] != value:
                given = _yaml(values[key])
                raise ValueError(
                    f"compat: {compat} needs {key}: {_yaml(value)}, but {key} is {given}: remove one of them"
                )
        return {**values, **COMPAT[compat]}

    @model_validator(mode="after")
    def _bounds(self) -> AimOptions:
        if self.min_interval > self.max_interval:
            raise ValueError(f"min_interval {self.min_interval} is larger than max_interval {self.max_interval}")
        if self.probes_per_interval is not None and self.probe_every is not None:
            raise ValueError("probe_every and probes_per_interval both say how often to probe: keep one")
        if not self.measure_merges and self.guard_factor is not None:
            if "guard_factor" in self.model_fields_set:
                raise ValueError("guard_factor needs the losses that measure_merges: false leaves out: keep one")
            self.guard_factor = None
        if self.only_at_end and "guard_factor" not in self.model_fields_set:
            self.guard_factor = None  # going back from the end of a task may well multiply a loss that had gone to 0
        return self

    def memory_values(self) -> dict[str, Any]:
        if self.compat != "reference":
            return {}
        return {"sampler": "reference", "allow_excess": True, "minimum_per_label": 0}

    def controller(self) -> MergeController:
        """A fresh controller with these numbers."""
        rehearsal_steps = self.rehearsal_steps
        if rehearsal_steps is None and self.compat is None:
            rehearsal_steps = max(1, self.interval // REHEARSAL_SHARE)
        return MergeController(
            interval=self.interval,
            cold_start=self.cold_start,
            min_interval=self.min_interval,
            max_interval=self.max_interval,
            threshold_factor=self.threshold_factor,
            warmup_fraction=self.warmup_fraction,
            early_alarms=self.early_alarms,
            moving_until=self.moving_until,
            alarmed_above=self.alarmed_above,
            halve_from=self.halve_from,
            growth_short=self.growth_short,
            growth_long=self.growth_long,
            weights=self._weight_table(),
            weight_old=self.weight_old,
            rehearsal_steps=rehearsal_steps,
            minimum_rehearsal_steps=self.minimum_rehearsal_steps,
            adapt_interval=self.adapt_interval,
            watch_forgetting=self.watch_forgetting,
            probe_every=self.probe_every or 1,
            probes_per_interval=self.probes_per_interval,
            only_at_end=self.only_at_end,
        )

    def _weight_table(self) -> WeightTable:
        if self.weight_new is not None:
            return WeightTable(*[self.weight_new] * 4)
        return WeightTable(
            self.weight_moving_alarmed,
            self.weight_moving_calm,
            self.weight_settled_alarmed,
            self.weight_settled_calm,
        )


def _yaml(value: Any) -> str:
    """A value as it stands in a configuration file."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


class Aim(Method[AimOptions]):
    """Merges along the trajectory of each task; the first task, which has no memory, is plain fine-tuning."""

    Options = AimOptions
    title = "AimMerging"
    paper = "Feng 2025, EMNLP, arXiv 2509.17348"
    idea = "Signals of the training trajectory decide when and how strongly the model is merged with a rehearsed one."
    uses_memory = True
    supports_distributed = True

    _callback: AimMerging | None = None

    def rehearsal_batch(self, training: TrainingOptions, memory_examples: int) -> int | None:
        if memory_examples == 0:
            return None
        size = check_batch("method.batch", self.options.batch, training.batch, memory_examples)
        check_batch("method.probe_batch", self.options.probe_batch, size, memory_examples)
        return size

    def begin_task(self) -> None:
        super().begin_task()
        self._callback = None

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        size = self.rehearsal_batch(context.training, len(context.memory))
        if size is None:
            return []
        from merganser.training.aim.callback import AimMerging

        self._callback = AimMerging(
            memory=context.memory,
            controller=self.options.controller(),
            batch_size=size,
            probe_batch_size=self.options.probe_batch,
            seed=derive_seed(context.seed, "aim"),
            collator=context.backbone.collate,
            rehearsal_sampling=self.options.rehearsal_sampling,
            probe_set=self.options.probe_set,
            probe_groups=context.memory_groups,
            probe_dropout=self.options.probe_dropout,
            measure_merges=self.options.measure_merges,
            merge_at_end=self.options.merge_at_end or self.options.only_at_end,
            fusion=self.options.fusion,
            important_share=self.options.important_share,
            importance_smoothing=self.options.importance_smoothing,
            guard_factor=self.options.guard_factor,
            checkpoints=False,
            task=context.task,
            task_index=context.index,
            listener=context.listener,
        )
        return [self._callback]

    def task_state(self) -> TaskState:
        return TaskState() if self._callback is None else self._callback.task_state()

    def load_task_state(self, state: TaskState) -> None:
        if self._callback is not None:
            self._callback.load_task_state(state)

    def after_task(self, context: TaskContext) -> None:
        if self._callback is None:
            return
        self.records.merges = self._callback.merges
        self.records.cost = self._callback.cost
        self.records.signals = {
            step: Signals(probe, interval, threshold)
            for step, (probe, interval, threshold) in self._callback.probes.items()
        }

    def signals(self, step: int) -> tuple[float | None, int | None]:
        if self._callback is None or step not in self._callback.probes:
            return None, None
        probe, interval, _ = self._callback.probes[step]
        return probe, interval
