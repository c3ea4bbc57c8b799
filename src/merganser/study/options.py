"""The file that describes a study, as types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from merganser.errors import short
from merganser.options import StrictOptions
from merganser.streams.options import StreamOptions

Section = dict[str, Any]
"""Keys of a section of a run's file; checked with the rest of the run."""

Order = list[str] | int | str
"""Names of tasks, a seed that shuffles them, or a built-in order by its name."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]

Development = Literal["dev"] | Annotated[float, Field(gt=0, lt=1)]
"""Development data: those of each task, or a share of its training texts."""

MOST_SEEDS = 100_000
"""Of one study."""

SECTIONS = ("model", "memory", "training", "evaluation", "runs")
"""Sections of a run's file that a study has for all cells, and that a method of it can change."""


class VariantOptions(StrictOptions):
    """One method of a study: what differs from the sections that all cells have."""

    method: str | Section | None = Field(
        None, description="as in a run's file; default: the method that this entry is named after"
    )
    model: Section = Field(default_factory=dict, description="keys of this section for this method")
    memory: Section = Field(default_factory=dict, description="likewise")
    training: Section = Field(default_factory=dict, description="likewise")
    evaluation: Section = Field(default_factory=dict, description="likewise")
    runs: Section = Field(default_factory=dict, description="likewise")
    grid: Section = Field(
        default_factory=dict,
        description="sections of a run's file with a list of values in the place of a value: one cell per combination",
    )


class TuneOptions(StrictOptions):
    """How options of the methods are searched before the results, with the same budget for every method."""

    grid: Section = Field(
        description="sections of a run's file with a list of values in the place of a value; an option of `method` is "
        "for those methods that have it, `memory` for those that have a memory"
    )
    trials: int = Field(
        ge=1,
        description="settings that are tried of each method; of a larger grid Optuna chooses them (merganser[tune])",
    )
    development: Development = Field(
        "dev",
        description="trials are scored on the development texts (`dev`), or on this share of the training texts",
    )
    seeds: list[Seed] = Field([1000], min_length=1, description="of the trials, each in the first order alone")


class StudyOptions(StrictOptions):
    """A study: methods x option grids x orders x seeds, on one or several streams."""

    name: str | None = Field(None, min_length=1, max_length=200, description="title; default: the name of the file")
    model: Section = Field(description="as in a run's file, for all cells")
    stream: StreamOptions | None = Field(None, description="the tasks, as in a run's file")
    streams: dict[str, StreamOptions] = Field(
        default_factory=dict, description="instead of stream: several, each under its name"
    )
    methods: dict[str, VariantOptions] = Field(
        description="name in the results -> what differs; or a list of methods with their defaults"
    )
    orders: dict[str, Order] = Field(
        default_factory=dict,
        description="orders of the tasks: lists of their names (of a split: of its classes), seeds that shuffle them, "
        "or built-in orders; a mapping gives them names. Default: as the stream has them",
    )
    seeds: list[Seed] = Field([0], description="seeds of the runs; one number n: 0 to n - 1")
    memory: Section = Field(default_factory=dict, description="as in a run's file, for all cells")
    training: Section = Field(default_factory=dict, description="likewise")
    evaluation: Section = Field(default_factory=dict, description="likewise")
    runs: Section = Field(default_factory=dict, description="likewise")
    grid: Section = Field(
        default_factory=dict,
        description="for all methods, as in a method; an option of `method` is for those methods that have it, "
        "`memory` for those that have a memory",
    )
    tune: TuneOptions | None = Field(None, description="options that are searched first, on development data")
    development: Development | None = Field(
        None,
        description="score on development data, not on the test texts: `dev`, or this share of the training texts",
    )
    reference: str | None = Field(
        None, description="method that the others are compared with; default: replay, else sequential, else the best"
    )
    fwt: bool = Field(False, description="also train a fresh model per task, for forward transfer")
    processes: int = Field(1, ge=1, description="processes per cell (torchrun), for models that need several devices")
    fsdp: str | None = Field(
        None, min_length=1, description="file of accelerate with which these processes shard the weights (FSDP)"
    )
    gpus: float | None = Field(
        None, ge=0, description="GPUs that Ray reserves per process; default: 1 where there are any. Less: cells share"
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _method_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            if wrong := [item for item in value if not isinstance(item, str)]:
                raise ValueError(f"a list holds names of methods; give options in a mapping (got {wrong[0]!r:.80})")
            if len(set(value)) != len(value):
                raise ValueError("a method stands twice; in a mapping, each variant has a name of its own")
            value = dict.fromkeys(value)
        if not isinstance(value, Mapping):
            raise ValueError("write a list of methods, or a section for each under its name")
        for name, given in value.items():
            if given is not None and not isinstance(given, Mapping | VariantOptions):
                method = given if isinstance(given, str) else "METHOD"
                raise ValueError(f"{name} is no section (got {short(given)}): write {name}: {{method: {method}}}")
        return {str(name): {} if given is None else given for name, given in value.items()}

    @field_validator("orders", mode="before")
    @classmethod
    def _order_list(cls, value: Any) -> Any:
        if isinstance(value, list | Mapping) and not value:
            raise ValueError("there is none; leave 'orders' out to learn the tasks as the stream has them")
        if isinstance(value, Mapping):
            return value
        if not isinstance(value, list):
            raise ValueError("write a list of orders, or a mapping that names them")
        names = [_order_name(number, order) for number, order in enumerate(value, 1)]
        if len(set(names)) != len(names):
            raise ValueError("an order stands twice")
        return dict(zip(names, value, strict=True))

    @field_validator("seeds", mode="before")
    @classmethod
    def _seed_count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value > MOST_SEEDS:
                raise ValueError(f"{value:,} seeds are too many (at most {MOST_SEEDS:,})")
            return list(range(value))
        return value

    @model_validator(mode="after")
    def _something_to_run(self) -> StudyOptions:
        if self.stream is not None and self.streams:
            raise ValueError("gives both 'stream' and 'streams': keep one")
        if self.stream is None and not self.streams:
            raise ValueError("has no 'stream': name the tasks to learn")
        for key, given in (("methods", self.methods), ("seeds", self.seeds)):
            if not given:
                raise ValueError(f"{key} is empty: there is no cell to run")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed stands twice in 'seeds'")
        if self.reference is not None and self.reference not in self.methods:
            raise ValueError(f"reference: {self.reference!r} is none of the methods ({', '.join(self.methods)})")
        return self

    @property
    def named_streams(self) -> dict[str, StreamOptions]:
        """The streams by name; a single one is called ``stream``."""
        return self.streams if self.stream is None else {"stream": self.stream}


def _order_name(number: int, order: Any) -> str:
    if isinstance(order, str):
        return order
    return f"shuffle-{order}" if isinstance(order, int) else f"order-{number}"
