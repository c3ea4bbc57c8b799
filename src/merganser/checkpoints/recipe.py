"""The recipe of a merge: the validated content of ``merge.yaml``.

A parameter may be a value for all tensors, a :class:`Gradient` over the layers or :class:`Cases` by the tensor's name.
Overrides change rule, parameters (``seed`` too) or origin of the tensors that a pattern matches; later ones win.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, PlainValidator, StrictBool, field_validator, model_validator

from merganser.checkpoints.dtypes import SHORT_NAMES, TORCH_NAMES
from merganser.errors import InputError, nearest
from merganser.merging.rule import Parameter, Rule, Value, check_count
from merganser.merging.rules import get_rule
from merganser.options import StrictOptions

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|layer_module)\.(\d+)\.")


@dataclass(frozen=True)
class LayerPosition:
    """A tensor's name and its position among the layers (0 first, 1 last; 0 outside of the layers).

    Attributes:
        name: its name; of a tied parameter, the first of its names.
        position: among the layers.
        aliases: the other names of a tied parameter; patterns apply to a parameter by any of its names.
    """

    name: str
    position: float
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All its names."""
        return (self.name, *self.aliases)


class Gradient(StrictOptions):
    """A value that changes linearly over the layers."""

    layers: list[Any] = Field(
        min_length=1,
        json_schema_extra={"items": {"type": "number"}},
        description="values from the first layer to the last, evenly spaced; tensors outside of the layers take the "
        "first",
    )

    def at(self, tensor: LayerPosition) -> float:
        """Interpolate at the tensor's position."""
        scaled = tensor.position * (len(self.layers) - 1)
        low = min(int(scaled), len(self.layers) - 1)
        high = min(low + 1, len(self.layers) - 1)
        fraction = scaled - low
        return float((1.0 - fraction) * self.layers[low] + fraction * self.layers[high])


class Case(StrictOptions):
    """A value for the tensors whose name contains a text."""

    contains: str | None = Field(None, description="the text; without it the case fits every tensor")
    value: Annotated[Any, PlainValidator(lambda value: _read_setting(value), json_schema_input_type=Value | Gradient)]


class Cases(StrictOptions):
    """A value that depends on the tensor's name: the first case that fits."""

    cases: list[Case] = Field(min_length=1, description="where none fits, options apply, then the default")

    def at(self, tensor: LayerPosition) -> Value | None:
        """Return the value of the first case that fits, or ``None``."""
        for case in self.cases:
            if case.contains is None or any(case.contains in name for name in tensor.names):
                return case.value.at(tensor) if isinstance(case.value, Gradient) else case.value
        return None


def _read_setting(value: Any) -> Any:
    """Parse a setting from YAML: maps become :class:`Gradient` and :class:`Cases`."""
    if isinstance(value, list):
        return [_read_setting(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"layers"}:
        return Gradient.model_validate(value)
    if set(value) == {"cases"}:
        return Cases.model_validate(value)
    raise ValueError(f"this is {dict(value)!r}; write a value, {{layers: [...]}} or {{cases: [...]}}")


Setting: TypeAlias = Annotated[Any, PlainValidator(_read_setting, json_schema_input_type=Value | Gradient | Cases)]
"""A parameter of a rule: a value, a :class:`Gradient` or :class:`Cases`."""

PerModel: TypeAlias = Annotated[
    Any,
    PlainValidator(_read_setting, json_schema_input_type=Value | Gradient | Cases | list[Value | Gradient | Cases]),
]
"""A :data:`Setting`, or a list with one per model."""


class ModelEntry(StrictOptions):
    """A model to merge. Further keys are the rule's parameters that each model has, such as `weight` and `density`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Setting]

    model: str = Field(min_length=1, description="folder, file, adapter, hub id (owner/name@revision) or BASE+ADAPTER")
    fisher: str | None = Field(None, description="checkpoint of Fisher information, for the rule `fisher`")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """Parameter name -> setting."""
        return self.__pydantic_extra__


class Override(StrictOptions):
    """Settings of the tensors whose name a pattern matches. Further keys are the rule's parameters."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True)
    __pydantic_extra__: dict[str, PerModel]

    match: str = Field(description="shell pattern over the whole name, for example '*.mlp.*'")
    rule: str | None = Field(None, description="rule of these tensors")
    source: Literal["base"] | None = Field(None, alias="from", description="copy these tensors from the base")

    @property
    def settings(self) -> dict[str, Any]:
        """Parameter name -> setting, or list of one per model."""
        return self.__pydantic_extra__


class Recipe(StrictOptions):
    """A merge of checkpoints: the models, the rule and its parameters."""

    model_config = ConfigDict(validate_assignment=True)

    rule: str = Field(description="rule of every tensor that no override gives another; see `merganser merge --list`")
    models: list[ModelEntry] = Field(min_length=1, description="models to merge, in order: names, or maps with `model`")
    base: str | None = Field(None, min_length=1, description="model that all of them started from")
    options: dict[str, PerModel] = Field(default_factory=dict, description="parameters of the rule for all tensors")
    overrides: list[Override] = Field(default_factory=list, description="by tensor name; later ones win")
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None = Field(
        None, description="type of the result; by default that of each tensor"
    )
    seed: int = Field(0, description="seed of the random masks")
    common_only: StrictBool = Field(False, description="merge what all models have in equal shape, and list the rest")
    common_rows: StrictBool = Field(
        False, description="merge the rows that vocabularies of different sizes have in common, and keep the others"
    )
    allow_config: list[str] = Field(
        default_factory=list, description="keys of the models' config.json that may differ, such as rope_theta"
    )
    tokenizer_from: str | None = Field(
        None, min_length=1, description="model whose tokenizer, chat template and generation settings the result has"
    )
    ignore_vocabulary: StrictBool = Field(False, description="merge although the tokenizers' vocabularies differ")
    allow_nonfinite: StrictBool = Field(False, description="accept NaN and infinity")
    space: Literal["update", "factors"] = Field(
        "update", description="adapters: merge the updates B A (exact), or A and B separately"
    )
    rank: int | None = Field(None, ge=1, description="adapters: rank of the result; by default the exact one")
    allow_different_bases: StrictBool = Field(False, description="adapters: accept those that name different bases")

    @field_validator("dtype", mode="before")
    @classmethod
    def _short_dtype(cls, value: Any) -> Any:
        name = SHORT_NAMES.get(value, value) if isinstance(value, str) else value
        if name is not None and name not in TORCH_NAMES:
            raise ValueError(f"choose from {', '.join((*TORCH_NAMES, *SHORT_NAMES))}")
        return name

    @field_validator("options", "overrides", mode="before")
    @classmethod
    def _empty(cls, value: Any, info: Any) -> Any:
        return ({} if info.field_name == "options" else []) if value is None else value

    @model_validator(mode="after")
    def _check_against_rules(self) -> Recipe:
        rule = get_rule(self.rule)
        if "seed" in self.options:
            raise InputError("options.seed is not an option.", "Put the seed at the top of the file, beside rule.")
        for key, value in self.options.items():
            self.options[key] = self._check_setting(rule, key, value, "options", f"options.{key}")
        for index, entry in enumerate(self.models):
            self._check_model(rule, entry, f"models[{index}]")
        for index, override in enumerate(self.overrides):
            where = f"overrides[{index}]"
            used = rule if override.rule is None else get_rule(override.rule)
            for key, value in override.settings.items():
                override.settings[key] = self._check_setting(used, key, value, where, f"{where}.{key}")
        self._check_counts()
        return self

    def _check_model(self, rule: Rule, entry: ModelEntry, where: str) -> None:
        known = {parameter.name: parameter for parameter in rule.per_model}
        keys = [*entry.settings, *(["fisher"] if entry.fisher is not None else [])]
        for key in keys:
            if key not in known and key != rule.extra:
                takes = ", ".join(("model", *known, *([rule.extra] if rule.extra else [])))
                raise InputError(
                    f"{where}: unknown key '{key}'.", f"{nearest(key, known)} A model of {rule.name} takes {takes}."
                )
            if key in entry.settings:
                entry.settings[key] = _check_value(known[key], entry.settings[key], f"{where}.{key}")

    def _check_setting(self, rule: Rule, key: str, value: Any, scope: str, where: str) -> Any:
        """Check a setting, or a list of one per model for a per-model parameter, and convert it to its type."""
        parameter = rule.parameter(key, scope)
        if not isinstance(value, list):
            return _check_value(parameter, value, where)
        if parameter not in rule.per_model:
            layers = " It may change over the layers: {layers: [...]}." if isinstance(parameter.default, float) else ""
            raise InputError(f"{where} is a list.", f"Give one value of {key}, not one per model.{layers}")
        if len(value) != len(self.models):
            raise InputError(
                f"{where} has {len(value)} values for {len(self.models)} models.", "Give one per model, or one for all."
            )
        return [_check_value(parameter, item, f"{where}[{index}]") for index, item in enumerate(value)]

    def _check_counts(self) -> None:
        for name in {self.rule, *(override.rule for override in self.overrides if override.rule)}:
            rule = get_rule(name)
            check_count(name, len(self.models), rule.min_models, rule.max_models)
            if rule.extra and any(entry.fisher is None for entry in self.models):
                raise InputError(
                    f"The rule {name} needs a {rule.extra} file for every model.",
                    f"Give each model the key {rule.extra}: a checkpoint with the same names and shapes.",
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Paths or hub ids of the models, in order."""
        return tuple(entry.model for entry in self.models)

    @property
    def fishers(self) -> tuple[str, ...]:
        """Paths or hub ids of the models' Fisher information, or none."""
        return tuple(entry.fisher for entry in self.models if entry.fisher is not None)

    @property
    def storage_dtype(self) -> str | None:
        """Type of the result as safetensors spells it (``BF16``), or ``None`` for that of each tensor."""
        return None if self.dtype is None else TORCH_NAMES[self.dtype]

    def to_content(self) -> dict[str, Any]:
        """Return the content of a ``merge.yaml`` that repeats the merge: all non-default values, and the seed."""
        return {**self.model_dump(exclude_defaults=True, by_alias=True), "seed": self.seed}

    def renamed(self, names: Mapping[str, str]) -> Recipe:
        """Return the recipe with other names for its models, Fishers and base.

        Args:
            names: old name -> new name.
        """
        entries = [
            entry.model_copy(
                update={"model": names[entry.model], "fisher": None if entry.fisher is None else names[entry.fisher]}
            )
            for entry in self.models
        ]
        update = {
            key: None if (name := getattr(self, key)) is None else names[name] for key in ("base", "tokenizer_from")
        }
        return self.model_copy(update={"models": entries, **update})

    def resolve(self, tensor: LayerPosition) -> tuple[Rule | None, dict[str, Any]]:
        """Find the rule of a tensor (``None``: keep the base's) and the arguments of its function.

        Raises:
            InputError: a value for another rule that this tensor's rule does not accept.
        """
        rule_name, keep, settings = self._scoped(tensor)
        if keep:
            return None, {}
        rule = get_rule(rule_name)

        def checked(parameter: Parameter, value: Value | None) -> Value:
            # A value for another rule may be invalid for this one.
            if value is None:
                return self.seed if parameter.name == "seed" else parameter.default
            return parameter.check(value, f"The {parameter.name} for {tensor.name}, which {rule.name} merges,")

        values: dict[str, Any] = {
            parameter.name: checked(parameter, settings.get(parameter.name)) for parameter in rule.options
        }
        for parameter in rule.per_model:
            value = settings.get(parameter.name)
            per_model = value if isinstance(value, list) else [value] * len(self.models)
            values[parameter.name] = [checked(parameter, item) for item in per_model]
        arguments = rule.arguments(values)
        if rule.random:
            arguments["name"] = tensor.name
        return rule, arguments

    def _scoped(self, tensor: LayerPosition) -> tuple[str, bool, dict[str, Any]]:
        """Resolve a tensor's rule name, whether the base's tensor is kept, and its settings."""
        keys = dict.fromkeys(key for entry in self.models for key in entry.settings)
        per_model = {key: [entry.settings.get(key) for entry in self.models] for key in keys}
        fitting = [
            override for override in self.overrides if any(fnmatchcase(name, override.match) for name in tensor.names)
        ]
        settings: dict[str, Any] = {}
        for scope in (self.options, per_model, *(override.settings for override in fitting)):
            for key, setting in scope.items():
                settings[key] = _override(settings.get(key), _evaluate(setting, tensor), len(self.models))
        rule, keep = self.rule, False
        for override in fitting:
            rule = override.rule or rule
            keep = override.source == "base" or (keep and override.rule is None)
        return rule, keep, settings


def _check_value(parameter: Parameter, setting: Any, where: str) -> Any:
    """Check the type and limits of a setting's values, and convert them to the parameter's type."""
    if isinstance(setting, Gradient):
        if isinstance(parameter.default, bool | str | int):
            raise InputError(f"{where} changes over the layers.", f"Give {parameter.name} one value.")
        values = [parameter.check(value, f"{where}.layers[{index}]") for index, value in enumerate(setting.layers)]
        return setting.model_copy(update={"layers": values})
    if isinstance(setting, Cases):
        cases = []
        for index, case in enumerate(setting.cases):
            at = f"{where}.cases[{index}]"
            if isinstance(case.value, Cases):
                raise InputError(f"{at} holds nested cases.", "Use values or layers in cases.")
            cases.append(case.model_copy(update={"value": _check_value(parameter, case.value, f"{at}.value")}))
        return setting.model_copy(update={"cases": cases})
    return parameter.check(setting, where)


def _evaluate(setting: Any, tensor: LayerPosition) -> Any:
    """Evaluate a setting for a tensor, per model if it is a list; ``None`` where no case fits."""
    if isinstance(setting, list):
        return [_evaluate(item, tensor) for item in setting]
    return setting.at(tensor) if isinstance(setting, Gradient | Cases) else setting


def _override(old: Any, new: Any, count: int) -> Any:
    """Replace an older value by a newer one, except where the newer one is ``None``, whole or for a model."""
    if new is None:
        return old
    if not isinstance(new, list) or None not in new:
        return new
    before = old if isinstance(old, list) else [old] * count
    return [b if n is None else n for b, n in zip(before, new, strict=True)]


def positions(names: Sequence[str], tied: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, LayerPosition]:
    """Compute the position of every tensor from the layer numbers in the names.

    Args:
        names: of all tensors.
        tied: name -> all names of its parameter; these have one position, that of the first.
    """
    groups = tied or {}
    layers = _layers(names)
    last = max(layers.values(), default=0)
    # A single layer counts as the last, as in mergekit.
    fraction = {name: layer / last if last else 1.0 for name, layer in layers.items()}
    parameters = {name: groups.get(name, (name,)) for name in names}
    return {
        name: LayerPosition(first, fraction.get(first, 0.0), tuple(others))
        for name, (first, *others) in parameters.items()
    }


def layer_count(names: Iterable[str]) -> int:
    """Count the layers that the tensors of a model belong to."""
    return max(_layers(names).values(), default=-1) + 1


def _layers(names: Iterable[str]) -> dict[str, int]:
    return {name: int(match.group(1)) for name in names if (match := _LAYER.search(name))}


def refuse_unmatched(recipe: Recipe, names: Sequence[str]) -> None:
    """Refuse an override that matches no tensor.

    Raises:
        InputError: an override matches nothing; names the pattern and a tensor.
    """
    for override in recipe.overrides:
        if override.match != "*" and not any(fnmatchcase(name, override.match) for name in names):
            raise InputError(
                f"The override {override.match!r} matches no tensor.",
                f"Tensors are named like {next(iter(names), '?')}; * matches anything.",
            )
