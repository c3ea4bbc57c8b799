"""AimMerging as a method of a run: the callback, with every number of the paper's program as an option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, model_validator

from merganser.control import IntervalPart
from merganser.methods.base import Method, TaskContext
from merganser.methods.shared.beside import BESIDE, REPLAY_SHARE, BesideOptions
from merganser.methods.shared.rehearsal import Rehearsal, RehearsalOptions
from merganser.options import StrictOptions, option_fields, yaml_text
from merganser.settings import ABLATION, described, with_default
from merganser.training.aim.config import (
    PAPER_DEFAULTS,
    REFERENCE,
    REFERENCE_DEFAULTS,
    REFERENCE_SELECTION,
    REFERENCE_TRAINING,
    AimConfig,
    Moments,
    ProbeSet,
)
from merganser.training.determinism import derive_seed
from merganser.training.options import TrainingOptions, check_batch
from merganser.training.state import TaskState

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from merganser.training.aim.callback import AimMerging
    from merganser.training.aim.weight_change import WeightChange
    from merganser.training.rehearsal import Collator
    from merganser.training.trainer import Penalty


_PUBLISHED: dict[str, Any] = {"finish_weight": None, "replay_share": None, "consistency": 0.0} | dict.fromkeys(BESIDE)

COMPAT = {"paper": (_PUBLISHED, PAPER_DEFAULTS), "reference": (REFERENCE | _PUBLISHED, REFERENCE_DEFAULTS)}
"""Value of ``compat`` -> options that it sets, and defaults of options that can still be chosen."""


class _CompatOptions(BesideOptions):
    """Options of :class:`AimOptions` besides the settings of :class:`~merganser.training.aim.config.AimConfig`."""

    name: Literal["aim"] = "aim"
    compat: Literal["paper", "reference"] | None = Field(
        None,
        description="paper: the published method, which rehearses before merges alone; reference: reproduces the "
        "program released with it; sets the options concerned, here, in `memory` (the sampler) and in `training` "
        "(order of the data, mean of the loss, selection by development loss)",
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
        config = self.config()
        if not config.merge and self.replay_share is not None:
            raise ValueError("merge: false never rehearses, and replay_share does: keep one")
        for name in ("consistency", *BESIDE):
            if self.replay_share is None and getattr(self, name):
                raise ValueError(f"{name} is that of the examples of replay_share, which is null: set both or neither")
        if self.replay_share is None and config.probe_set == "replayed":
            raise ValueError("probe_set: replayed needs replay_share, which is null: use fixed, or set replay_share")
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


_BEFORE_MERGES = ("rehearsal_steps", "probe_batch", "probe_set", "moments")
"""Settings that have other defaults where examples are rehearsed before merges alone."""


def _implied(given: Mapping[str, Any]) -> dict[str, Any]:
    """Choose how old examples are rehearsed: beside the training batches and before merges, or before merges alone.

    Masks are computed from both phases of the published method, so they need the second; where nothing is merged,
    nothing is rehearsed. Without rehearsal before it a merge is an interpolation, whose weights sum to 1.
    """
    two_phases = given.get("fusion") == "importance_masks" or given.get("merge") is False
    beside = given.get("replay_share", None if two_phases else REPLAY_SHARE)
    implied: dict[str, Any] = {"replay_share": beside}
    if beside is None:
        implied |= dict.fromkeys(BESIDE) | {"consistency": 0.0}
        implied |= {name: getattr(AimConfig(), name) for name in _BEFORE_MERGES}
    steps = given.get("rehearsal_steps", implied.get("rehearsal_steps", _WithReplay().rehearsal_steps))
    implied["weight_old"] = None if steps == 0 else AimConfig().weight_old
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

    rehearsal_steps: int | IntervalPart = with_default(AimConfig, "rehearsal_steps", 0)
    weight_old: float | None = with_default(AimConfig, "weight_old", None)
    probe_batch: int | Literal["quarter", "half"] | None = with_default(AimConfig, "probe_batch", "quarter")
    probe_set: ProbeSet = with_default(AimConfig, "probe_set", "replayed")
    moments: Moments = with_default(AimConfig, "moments", "empty")


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
    idea = "Old texts in every batch; the trajectory decides when and how strongly to merge with earlier weights."
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
            collator=self._collator(context),
            probe_groups=context.memory_groups,
            records=self.records,
        )
        return [self._callback, *watching]

    def _collator(self, context: TaskContext) -> Collator:
        """Return what makes the batches on which losses are measured: of texts as long as those beside the batches.

        Texts that are rehearsed before merges are whole, and so are all batches then.
        """
        longest = None if self.config.rehearsal_steps else self.options.longest_beside(context)
        collate = context.collator()
        if longest is None:
            return collate
        return lambda examples: collate(context.backbone.shortened(examples, longest))

    def penalty(self, context: TaskContext) -> Penalty | None:
        self._beside = None
        share = self.options.beside(context)
        if share is None:
            return None
        consistency = self.options.consistency_of(context.backbone.kind)
        options = RehearsalOptions(name="replay", share=share, consistency=consistency)
        on_loss = None if self._callback is None else self._callback.replayed.add
        self._beside = Rehearsal(options, "aim replay", on_loss, self.options.batches_per_pass(context))
        longest = self.options.longest_beside(context)
        if longest is not None:
            context = replace(context, memory=context.backbone.shortened(context.memory, longest))
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
