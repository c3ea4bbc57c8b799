"""AimMerging as a method of a run: the callback, with every number of the paper's program as an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, model_validator

from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.rehearsal import Rehearsal, RehearsalOptions
from merganser.methods.shared.start_merge import FinishOptions
from merganser.options import StrictOptions, option_fields, yaml_text
from merganser.settings import ABLATION, described
from merganser.training.aim.config import (
    REFERENCE,
    REFERENCE_DEFAULTS,
    REFERENCE_SELECTION,
    REFERENCE_TRAINING,
    AimConfig,
)
from merganser.training.determinism import derive_seed
from merganser.training.options import TrainingOptions, check_batch
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.aim.callback import AimMerging
    from merganser.training.aim.weight_change import WeightChange
    from merganser.training.trainer import Penalty


COMPAT = {"reference": (REFERENCE | {"finish_weight": None, "replay_share": None}, REFERENCE_DEFAULTS)}
"""Value of ``compat`` -> options that it sets, and defaults of options that can still be chosen."""


class _CompatOptions(FinishOptions):
    """Options of :class:`AimOptions` besides the settings of :class:`~merganser.training.aim.config.AimConfig`."""

    name: Literal["aim"] = "aim"
    compat: Literal["reference"] | None = Field(
        None,
        description="reference: reproduces the program released with the paper; sets the options concerned, here, in "
        "`memory` (the sampler) and in `training` (order of the data, mean of the loss, selection by development loss)",
    )

    replay_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="memory examples beside every training batch as a share of it, as in `replay`, in addition to the "
        "rehearsal before a merge; null: none",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Set what ``compat`` and other options imply."""
        if not isinstance(values, Mapping):
            return values
        ablation = values.get(ABLATION)
        merged = {**values, **(ablation if isinstance(ablation, Mapping) else {})}
        if merged.get("measure_merges") is False and merged.get("guard_factor") is not None:
            raise ValueError("guard_factor needs the losses that measure_merges: false omits: keep one")
        implied = AimConfig.implied(merged)
        compat = values.get("compat")
        if not isinstance(compat, str) or compat not in COMPAT:
            return {**implied, **values}
        required, defaults = COMPAT[compat]
        for key, value in required.items():
            if key in values and values[key] != value:
                raise ValueError(
                    f"compat: {compat} needs {key}: {yaml_text(value)}, but {key} is {yaml_text(values[key])}: "
                    "remove one of them"
                )
        return {**implied, **defaults, **values, **required}

    @model_validator(mode="after")
    def _fits_together(self) -> _CompatOptions:
        self.config()
        return self

    def config(self) -> AimConfig:
        """Return the settings as they are used.

        Raises:
            ValueError: two contradict each other.
        """
        values = self.model_dump()
        values |= values.pop(ABLATION)
        return AimConfig(**{name: values[name] for name, _, metadata in described(AimConfig) if name in values})

    def memory_values(self) -> dict[str, Any]:
        if self.compat != "reference":
            return {}
        return {"sampler": "reference", "allow_excess": True, "minimum_per_label": 0}

    def training_values(self) -> dict[str, Any]:
        return dict(REFERENCE_TRAINING) if self.compat == "reference" else {}

    def training_defaults(self) -> dict[str, Any]:
        return dict(REFERENCE_SELECTION) if self.compat == "reference" else {"asymmetric_loss": True}


AimAblation = create_model(
    "AimAblation",
    __module__=__name__,
    __base__=StrictOptions,
    __doc__="Parts of AimMerging switched off, to measure what they contribute.",
    **option_fields(AimConfig, ABLATION),
)

_ABLATION: Any = (AimAblation, Field(default_factory=AimAblation, description="parts switched off"))

AimOptions = create_model(
    "AimOptions",
    __module__=__name__,
    __base__=_CompatOptions,
    __doc__="AimMerging; rehearsal and probing are cheaper by default than in the released program, the rest is equal.",
    **option_fields(AimConfig),
    ablation=_ABLATION,
)


class Aim(Method[_CompatOptions]):
    """Merge along the trajectory of each task; the first task, which has no memory, is plain fine-tuning."""

    Options = AimOptions
    title = "AimMerging"
    paper = "Feng 2025, EMNLP, arXiv 2509.17348"
    idea = "Signals of the training trajectory decide when and how strongly the model is merged with a rehearsed one."
    uses_memory = True
    supports_distributed = True

    def __init__(self, options: _CompatOptions) -> None:
        super().__init__(options)
        self.config = options.config()
        self._callback: AimMerging | None = None  # of the current task; the first task has none
        self._change: WeightChange | None = None  # where nothing is merged
        self._beside: Rehearsal | None = None  # with ``replay_share``

    def rehearsal_batch(self, training: TrainingOptions, memory_examples: int) -> int | None:
        if memory_examples == 0:
            return None
        default = training.batch * training.accumulation
        size = check_batch("method.batch", self.config.batch, default, memory_examples)
        check_batch("method.probe_batch", self.config.probe_batch, size, memory_examples)
        return size

    def callbacks(self, context: TaskContext) -> list[TrainerCallback]:
        size = self.rehearsal_batch(context.training, len(context.memory))
        self._callback, self._change = None, None
        if not self.config.merge:
            from merganser.training.aim.weight_change import WeightChange

            self._change = WeightChange(self.records, self.config.interval)
        watching: list[TrainerCallback] = [] if self._change is None else [self._change]
        if size is None:
            return watching
        from merganser.training.aim.callback import AimMerging

        self._callback = AimMerging(
            context.memory,
            self.config,
            batch=size,
            seed=derive_seed(context.seed, "aim"),
            checkpoints=False,
            collator=context.collator(),
            probe_groups=context.memory_groups,
            records=self.records,
        )
        return [self._callback, *watching]

    def penalty(self, context: TaskContext) -> Penalty | None:
        self._beside = None
        if self.options.replay_share is None:
            return None
        self._beside = Rehearsal(RehearsalOptions(name="replay", share=self.options.replay_share), "aim replay")
        return self._beside.penalty(context, self.records)

    def after_task(self, context: TaskContext) -> None:
        self.options.finish(self.records, context)

    def task_state(self) -> TaskState:
        state = TaskState() if self._callback is None else self._callback.task_state()
        if self._beside is not None:
            state = TaskState(state.values | {"replay": self._beside.task_state().values}, state.tensors)
        return state if self._change is None else TaskState(state.values, state.tensors | self._change.state_tensors())

    def load_task_state(self, state: TaskState) -> None:
        if self._beside is not None:
            self._beside.load_task_state(TaskState(state.values["replay"]))
        if self._callback is not None:
            self._callback.load_task_state(state)
        if self._change is not None:
            self._change.load_state_tensors(state.tensors)
