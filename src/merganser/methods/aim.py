"""AimMerging as a method of a run: the callback, with every number of the paper's program as an option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, model_validator

from merganser.control import IntervalPart
from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.rehearsal import Rehearsal, RehearsalOptions
from merganser.methods.shared.start_merge import FinishOptions
from merganser.options import StrictOptions, option_fields, yaml_text
from merganser.settings import ABLATION, described, with_default
from merganser.training.aim.config import (
    PAPER_DEFAULTS,
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


REPLAY_SHARE = 0.25
"""Memory examples beside every training batch, as a share of it."""

_PUBLISHED: dict[str, Any] = {"finish_weight": None, "replay_share": None}

COMPAT = {"paper": (_PUBLISHED, PAPER_DEFAULTS), "reference": (REFERENCE | _PUBLISHED, REFERENCE_DEFAULTS)}
"""Value of ``compat`` -> options that it sets, and defaults of options that can still be chosen."""


class _CompatOptions(FinishOptions):
    """Options of :class:`AimOptions` besides the settings of :class:`~merganser.training.aim.config.AimConfig`."""

    name: Literal["aim"] = "aim"
    compat: Literal["paper", "reference"] | None = Field(
        None,
        description="paper: the published method, which rehearses before merges alone; reference: reproduces the "
        "program released with it; sets the options concerned, here, in `memory` (the sampler) and in `training` "
        "(order of the data, mean of the loss, selection by development loss)",
    )

    replay_share: float | None = Field(
        REPLAY_SHARE,
        gt=0,
        le=1,
        description="memory examples beside every training batch as a share of it, as in `replay`; null: none, and "
        "rehearsal before merges alone, for which rehearsal_steps is then half by default",
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
        implied = _implied(merged) | AimConfig.implied(merged)
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
        if not self.config().merge and self.replay_share is not None:
            raise ValueError("merge: false never rehearses, and replay_share does: keep one")
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
        if self.compat == "reference":
            return dict(REFERENCE_SELECTION)
        return {} if self.compat == "paper" else {"asymmetric_loss": True}


def _implied(given: Mapping[str, Any]) -> dict[str, Any]:
    """Choose how old examples are rehearsed: beside the training batches and before merges, or before merges alone.

    Masks are computed from both phases of the published method, so they need the second; where nothing is merged,
    nothing is rehearsed. Without rehearsal before it a merge is an interpolation, whose weights sum to 1.
    """
    two_phases = given.get("fusion") == "importance_masks" or given.get("merge") is False
    beside = given.get("replay_share", None if two_phases else REPLAY_SHARE)
    implied: dict[str, Any] = {"replay_share": beside}
    if beside is None:
        implied["rehearsal_steps"] = AimConfig().rehearsal_steps
    if given.get("rehearsal_steps") == 0:
        implied["weight_old"] = None
    return implied


AimAblation = create_model(
    "AimAblation",
    __module__=__name__,
    __base__=StrictOptions,
    __doc__="Parts of AimMerging switched off, to measure what they contribute.",
    **option_fields(AimConfig, ABLATION),
)

_ABLATION: Any = (AimAblation, Field(default_factory=AimAblation, description="parts switched off"))


@dataclass(frozen=True)
class _WithReplay(AimConfig):
    """The defaults where old examples stand beside every training batch as well."""

    rehearsal_steps: int | IntervalPart = with_default(AimConfig, "rehearsal_steps", "quarter")


AimOptions = create_model(
    "AimOptions",
    __module__=__name__,
    __base__=_CompatOptions,
    __doc__="AimMerging with replay: old examples stand beside every training batch, not before merges alone.",
    **option_fields(_WithReplay),
    ablation=_ABLATION,
)


class Aim(Method[_CompatOptions]):
    """Merge along the trajectory of each task; the first task, which has no memory, is plain fine-tuning."""

    Options = AimOptions
    title = "AimMerging"
    paper = "after Feng 2025, EMNLP, arXiv 2509.17348"
    idea = "Old texts in every batch; the trajectory decides when and how strongly to merge with a rehearsed model."
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
        check_batch("method.probe_batch", self.config.probe_examples(size), size, memory_examples)
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
