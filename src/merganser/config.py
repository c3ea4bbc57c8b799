"""The configuration of a run: the options of every section in one schema, and errors with cause and remedy."""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeGuard, Union

from pydantic import (
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails

from merganser.errors import InputError, nearest
from merganser.files.documents import Malformed, parse_yaml, read_text
from merganser.methods import METHODS, MethodOptions, make_method
from merganser.models.options import Engine, ModelOptions
from merganser.options import StrictOptions, first_problem, problem_text, yaml_text
from merganser.runs.options import Keep, RunsOptions
from merganser.streams.options import MemoryOptions, StreamOptions
from merganser.training.options import MAY_CHANGE, TrainingOptions

SectionT = typing.TypeVar("SectionT", bound=StrictOptions)


class AnyMethod:
    """Annotate a field with the options of any registered method; its schema is the union of theirs."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        options: Any = Union[tuple(METHODS[name].Options for name in METHODS)]  # noqa: UP007
        return handler(TypeAdapter(Annotated[options, Field(discriminator="name")]).core_schema)


ENGINE = frozenset({"engine", "engine_sample", "engine_memory"})
"""Options of ``evaluation`` that change no result, and may differ when a run is resumed."""


class EvaluationOptions(StrictOptions):
    """What is measured after every task."""

    future: bool = Field(
        True,
        description="after every task, also score the tasks of the stream not learned yet; false: each is scored only "
        "before any training and right before it is learned",
    )
    batch: int = Field(64, gt=0, description="examples per batch of inference")
    engine: Engine = Field(
        "transformers",
        description="causal: what writes answers; transformers: batches of generate; continuous: transformers' "
        "continuous batching; vllm: the package vllm, with the current weights",
    )
    engine_sample: int = Field(
        16, gt=0, description="engine: texts of every test set that transformers answers too, to compare"
    )
    engine_memory: float = Field(
        0.4, gt=0, lt=1, description="engine vllm: fraction of the device's memory that it takes, beside the model here"
    )
    keep_answers: bool = Field(
        True,
        description="keep every answer to a test example with its score, so that rows, runs and methods are compared "
        "example by example (`merganser check`)",
    )


class RunConfig(StrictOptions):
    """A run: which model learns which stream by which method."""

    model: ModelOptions
    stream: StreamOptions | None = Field(
        None, description="the tasks, in order; omit it to learn tasks one by one with `merganser learn`"
    )
    method: Annotated[SerializeAsAny[MethodOptions], AnyMethod] = Field(
        default_factory=lambda: METHODS["aim"].Options(name="aim"),
        description="the continual-learning method: a name, or a mapping with `name` and its options",
    )
    memory: MemoryOptions = Field(
        default_factory=MemoryOptions, description="examples stored of each task for rehearsal"
    )
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="how one task is optimised")
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions, description="what is measured")
    runs: RunsOptions = Field(default_factory=RunsOptions, description="what the directory of the run keeps")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of every random choice")

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_name(cls, value: Any) -> Any:
        value = {"name": value} if isinstance(value, str) else value
        if isinstance(value, MethodOptions):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("give the name of a method, or a mapping with 'name' and its options")
        name, known = value.get("name"), ", ".join(METHODS)
        if name is None:
            raise ValueError(f"it has no 'name'. Methods: {known}")
        if not isinstance(name, str) or name not in METHODS:
            # Nothing like a known name: it may come from a package that is not installed here.
            hint = nearest(str(name), METHODS) or "Install the package that provides it, or choose another."
            raise ValueError(f"there is no method '{name}'. {hint} Methods: {known}")
        try:
            return METHODS[name].Options.model_validate(dict(value))
        except ValidationError as error:
            # The chosen method becomes a part of the path, so that a message can list its keys.
            details = [
                InitErrorDetails(
                    type=item["type"], loc=(name, *item["loc"]), input=item["input"], ctx=item.get("ctx", {})
                )
                for item in error.errors()
            ]
            raise ValidationError.from_exception_data("method", details) from error

    @model_validator(mode="after")
    def _method_fits_model(self) -> RunConfig:
        if self.model.lora is None and METHODS[self.method.name].lora_only:
            raise ValueError(f"method '{self.method.name}' works on an adapter's factors, and model.lora is null")
        if self.model.lora is not None and make_method(self.method).uses_products() and self.model.lora.dora:
            raise ValueError(
                f"method '{self.method.name}' merges the updates B A, and the update of DoRA (model.lora.dora) is "
                "another one: the merge would not be exact"
            )
        if self.model.adapter is not None and make_method(self.method).uses_products():
            raise ValueError(
                f"method '{self.method.name}' computes with the updates B A, which must be zero before the first task, "
                "and model.adapter begins with others. Put that adapter into the model first: merganser merge "
                "BASE+ADAPTER --out FOLDER"
            )
        return self

    @model_validator(mode="after")
    def _model_is_causal(self) -> RunConfig:
        if self.training.packing != "none" and self.model.kind != "causal":
            raise ValueError(
                f"training.packing: {self.training.packing} is for kind 'causal', and model.kind is '{self.model.kind}'"
            )
        if self.evaluation.engine != "transformers" and self.model.kind != "causal":
            raise ValueError(
                f"evaluation.engine: {self.evaluation.engine} is for kind 'causal', and model.kind is "
                f"'{self.model.kind}'"
            )
        return self

    @model_validator(mode="after")
    def _sections_for_method(self) -> RunConfig:
        memory = self._as_required("memory", self.memory, self.method.memory_values())
        given = self.memory.model_fields_set
        chooses = self.memory.source == "data"
        defaults = {k: v for k, v in self.method.memory_defaults().items() if chooses and k not in given}
        self.memory = memory.model_copy(update=defaults) if defaults else memory
        self._check_memory(self.memory.model_dump(), {**self.method.memory_values(), **defaults})
        training = self._as_required("training", self.training, self.method.training_values())
        given = self.training.model_fields_set
        defaults = {key: value for key, value in self.method.training_defaults().items() if key not in given}
        self.training = training.model_copy(update=defaults) if defaults else training
        if make_method(self.method).reads_adam() and not self.training.optimizer.startswith("adamw_torch"):
            raise ValueError(
                f"method '{self.method.name}' reads the moments of AdamW (adamw_torch), and training.optimizer is "
                f"{self.training.optimizer}"
            )
        return self

    def _check_memory(self, values: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
        """Refuse a memory that what the method chooses makes impossible: a run with it could not be read again.

        Args:
            chosen: what the method requires or has by default.
        """
        try:
            MemoryOptions.model_validate(values)
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            choice = ", ".join(f"{key}: {yaml_text(value)}" for key, value in chosen.items())
            raise ValueError(f"memory: {reason}; method '{self.method.name}' chooses {choice}") from error

    def _as_required(self, name: str, section: SectionT, wanted: Mapping[str, Any]) -> SectionT:
        """Return a section with the values that the method requires.

        Raises:
            ValueError: another value was given.
        """
        for key in section.model_fields_set & set(wanted):
            if (given := getattr(section, key)) != wanted[key]:
                compat = getattr(self.method, "compat", None)
                raise ValueError(
                    f"method.compat: {compat} needs {name}.{key}: {yaml_text(wanted[key])}, but {name}.{key} is "
                    f"{yaml_text(given)}: remove one of them"
                )
        return section.model_copy(update=dict(wanted)) if wanted else section

    def sections(self) -> dict[str, Any]:
        """Return what must stay the same for a run to be resumed: plain values with defaults filled in."""
        return self.model_dump(
            mode="json",
            exclude={"stream": True, "training": set(MAY_CHANGE), "evaluation": set(ENGINE), "runs": True},
        )

    @property
    def keep_weights(self) -> Keep:
        """The rows whose weights are kept."""
        return self.runs.kept(self.model.lora is None, METHODS[self.method.name].per_task_models)

    def digest(self) -> str:
        """Return the SHA-256 of :meth:`sections`."""
        return hashlib.sha256(json.dumps(self.sections(), sort_keys=True).encode()).hexdigest()

    def with_changes_of(self, other: RunConfig) -> RunConfig:
        """Return this configuration with those options of ``other`` that may differ when a run is resumed."""
        training = {key: getattr(other.training, key) for key in MAY_CHANGE}
        evaluation = {key: getattr(other.evaluation, key) for key in ENGINE}
        return self.model_copy(
            update={
                "training": self.training.model_copy(update=training),
                "evaluation": self.evaluation.model_copy(update=evaluation),
            }
        )


def check_config(value: Any, where: str) -> RunConfig:
    """Validate a configuration.

    Args:
        value: as read from YAML or given from Python.
        where: a file name, for the message.

    Raises:
        InputError: an unknown key (with the nearest known one), a wrong type or an impossible value; the message
            names the path of the key.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected sections such as 'model:' and 'stream:'.", "See `merganser schema`.")
    try:
        return RunConfig.model_validate(dict(value))
    except ValidationError as error:
        raise explain(error, where) from error


def load_config(path: Path) -> RunConfig:
    """Read a run's YAML file.

    A model or adapter named by a path beside the file becomes that path, wherever the command runs.

    Raises:
        InputError: the file is missing, not YAML, or not a valid configuration.
    """
    return with_paths(check_config(read_description(path, "run"), str(path)), path.resolve().parent)


def read_description(path: Path, what: str) -> object:
    """Read the YAML file that describes a run or a study.

    Args:
        what: it describes, for the error if there is no file.

    Raises:
        InputError: the file is missing, cannot be read or is not YAML.
    """
    try:
        return parse_yaml(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"There is no file '{path}'.", f"Give the YAML file that describes the {what}.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.", "Give a YAML file.") from error
    except Malformed as error:
        raise InputError(f"{path} is not YAML: {error}.", "Correct it there.") from error


def with_paths(config: RunConfig, folder: Path) -> RunConfig:
    """Return a configuration whose model and adapter, where a folder has them under their names, are those paths."""
    named = {"name": config.model.name, "adapter": config.model.adapter}
    beside = {key: str(folder / name) for key, name in named.items() if name is not None}
    existing = {key: name for key, name in beside.items() if os.path.exists(name)}
    return config.model_copy(update={"model": config.model.model_copy(update=existing)}) if existing else config


RENAMED_KEYS = {"rehearsal_draws": "rehearsal_sampling", "replay_gathered": "replay_batches_per_pass"}
"""Earlier name of a key -> its name now, for the hint to a file that still has the earlier one."""

RENAMED_VALUES = {"walk": "epoch", "random": "iid"}
"""The same for values of ``method.rehearsal_sampling``."""

OptionsT = typing.TypeVar("OptionsT", bound=BaseModel)


def explain_options(model: type[OptionsT], value: Mapping[str, Any], where: str) -> OptionsT:
    """Validate the options of one section; raises errors as :func:`check_config` does."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        raise explain(error, where, model) from error


def explain(error: ValidationError, where: str, model: type[BaseModel] = RunConfig) -> InputError:
    """Return the first problem of a validation as one message with the path of the key."""
    first, count = first_problem(error), error.error_count()
    location = [part for part in first["loc"] if not _is_tag(part, first["loc"])]
    path = ".".join(str(part) for part in location)
    more = f" ({count - 1} more like this)" if count > 1 else ""
    at = f"{where}: {path}" if path else where
    if first["type"] == "extra_forbidden":
        known = known_keys(model, location[:-1], first["loc"])
        renamed = RENAMED_KEYS.get(str(location[-1]))
        inner = renamed if renamed in known else inner_key(model, location, first["loc"])
        remedy = f"Did you mean '{inner}'?" if inner else nearest(str(location[-1]), known)
        remedy = remedy or (f"Known keys: {', '.join(known)}." if known else "")
        return InputError(f"{at}: unknown key{more}.", remedy)
    if first["type"] == "missing":
        return InputError(f"{at}: missing{more}.", "Add it; `merganser schema` describes every key.")
    if first["type"] == "string_unicode":
        return InputError(
            f"{at}: {first['input']!r} is no valid Unicode{more}.", "Write it, or name the file, in UTF-8."
        )
    remedy = "`merganser schema` describes every key."
    if location[-1:] == ["rehearsal_sampling"] and str(first["input"]) in RENAMED_VALUES:
        remedy = f"Did you mean '{RENAMED_VALUES[str(first['input'])]}'?"
    return InputError(f"{at}: {problem_text(first)}{more}", remedy)


def _is_tag(part: str | int, location: Sequence[str | int]) -> bool:
    """Return whether a part of an error's location is pydantic's name of the chosen method, not a key of the file."""
    return len(location) > 1 and location[0] == "method" and part is location[1] and part in METHODS


def _models(annotation: Any) -> list[type[BaseModel]]:
    """List the pydantic models inside an annotation such as ``list[X] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def _models_at(
    model: type[BaseModel], path: Sequence[str | int], raw: Sequence[str | int] = ()
) -> list[type[BaseModel]]:
    """List the sections that may stand at a path of the configuration."""
    if path and path[0] == "method" and len(raw) > 1 and raw[1] in METHODS:
        return _models_at(METHODS[str(raw[1])].Options, path[1:])
    current = [model]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [field for model in current if (field := model.model_fields.get(part)) is not None]
        if not fields:
            continue  # a key that the user chose, such as a task's name
        current = [inner for field in fields for inner in _models(field.annotation)]
    return current


def known_keys(model: type[BaseModel], path: Sequence[str | int], raw: Sequence[str | int] = ()) -> list[str]:
    """List the keys that are allowed at a path of the configuration."""
    return sorted({key for section in _models_at(model, path, raw) for key in section.model_fields})


def inner_key(model: type[BaseModel], path: Sequence[str | int], raw: Sequence[str | int]) -> str | None:
    """Return where a misplaced key belongs, such as ``ablation.adapt_interval``; ``None`` if nowhere near."""
    for options in _models_at(model, path[:-1], raw):
        for section, field in options.model_fields.items():
            if any(path[-1] in inner.model_fields for inner in _models(field.annotation)):
                return f"{section}.{path[-1]}"
    return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List where two plain configurations differ: ``"training.batch: 16 in the run, 32 requested"``.

    Of two methods with different names, options that only one of them has are not listed.
    """
    keys = [*before, *(key for key in now if key not in before)]
    if before.get("name") != now.get("name"):
        keys = [key for key in keys if key in before and key in now]
    changes = []
    for key in keys:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += differences(old, new, f"{prefix}{key}.")
        elif _are_entries(old) and _are_entries(new) and len(old) == len(new):
            for number, pair in enumerate(zip(old, new, strict=True)):
                changes += differences(*pair, f"{prefix}{key}[{number}].")
        elif old != new:
            changes.append(f"{prefix}{key}: {old!r} in the run, {new!r} requested")
    return changes


def _are_entries(value: object) -> TypeGuard[list[Mapping[str, Any]]]:
    """Return whether this is a list of sections, such as the tasks of a stream."""
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)
