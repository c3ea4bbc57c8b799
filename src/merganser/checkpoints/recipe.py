"""What is asked of a merge, as data: the content of ``merge.yaml``.

A value may be a number for all tensors, change over the layers (``{layers: [0, 0.5, 1]}``: linear between these, from
the first layer to the last; 0 outside of the layers), or depend on the tensor's name
(``{cases: [{contains: mlp, value: 0.2}, {value: 0.5}]}``: the first that fits; where none does, what was said before
holds). ``overrides`` change rule, parameters (``seed`` too) or origin for tensors by pattern; later ones win.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from merganser.errors import InputError
from merganser.merging.rule import Parameter, Rule, Value
from merganser.merging.table import rule as rule_named

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|layer_module)\.(\d+)\.")


@dataclass(frozen=True)
class LayerPosition:
    """Where a tensor is: its name, and its position among the layers (0 first, 1 last; 0 outside of the layers)."""

    name: str
    position: float


@dataclass(frozen=True)
class Gradient:
    """A value that changes over the layers."""

    values: tuple[float, ...]

    def at(self, place: LayerPosition) -> float:
        """Linear interpolation at the place's position."""
        scaled = place.position * (len(self.values) - 1)
        low = min(int(scaled), len(self.values) - 1)
        high = min(low + 1, len(self.values) - 1)
        share = scaled - low
        return (1.0 - share) * self.values[low] + share * self.values[high]


@dataclass(frozen=True)
class Cases:
    """A value that depends on the tensor's name: the first case whose text the name contains."""

    cases: tuple[tuple[str | None, Value | Gradient], ...]

    def at(self, place: LayerPosition) -> Value | None:
        """The value, or ``None`` where no case fits."""
        for contains, value in self.cases:
            if contains is None or contains in place.name:
                return value.at(place) if isinstance(value, Gradient) else value
        return None


Setting = Value | Gradient | Cases


@dataclass(frozen=True)
class Override:
    """Settings for the tensors whose name a pattern matches.

    Attributes:
        match: a shell pattern over the whole name.
        rule: the rule, or ``None`` to leave it.
        settings: parameter name -> one setting, or one per model (``None``: leave that model's).
        keep_base: copy the base's tensors.
    """

    match: str = "*"
    rule: str | None = None
    settings: Mapping[str, Setting | tuple[Setting | None, ...]] = field(default_factory=dict)
    keep_base: bool = False


@dataclass(frozen=True)
class Recipe:
    """A whole merge.

    Attributes:
        models: paths or hub ids, in order.
        base: the same for the base, or ``None``.
        rule: of all tensors that no override gives another.
        overrides: settings, the general first.
        fishers: one path per model for the second tensors that a rule needs (Fishers), or empty.
        dtype: of the result (``F32`` ...), or ``None`` for that of each tensor.
        seed: of random rules.
        common_only: merge what all models have in equal shape, and list the rest.
        ignore_vocabulary: merge although tokenizers give one number to different tokens.
        allow_nonfinite: accept NaN and infinity.
        space: for adapters, ``update`` (exact) or ``factors``.
        rank: for adapters, the rank of the result; ``None`` keeps the exact one.
        allow_different_bases: accept adapters whose configs name different base models.
    """

    models: tuple[str, ...]
    base: str | None
    rule: str
    overrides: tuple[Override, ...] = ()
    fishers: tuple[str, ...] = ()
    dtype: str | None = None
    seed: int = 0
    common_only: bool = False
    ignore_vocabulary: bool = False
    allow_nonfinite: bool = False
    space: str = "update"
    rank: int | None = None
    allow_different_bases: bool = False

    def resolve(self, place: LayerPosition) -> tuple[Rule | None, dict[str, Any]]:
        """The rule of a tensor (``None``: keep the base's) and the arguments of its function.

        Raises:
            InputError: a value said for another rule that this tensor's rule does not take.
        """
        name, keep = self.rule, False
        settings: dict[str, Value | tuple[Value | None, ...] | None] = {}
        for override in self.overrides:
            if not fnmatchcase(place.name, override.match):
                continue
            name = override.rule or name
            keep = override.keep_base or (keep and override.rule is None)
            for key, setting in override.settings.items():
                settings[key] = _over(settings.get(key), _at(setting, place), len(self.models))
        if keep:
            return None, {}
        rule = rule_named(name)

        def checked(parameter: Parameter, value: Value | None) -> Value:
            # What another rule's scope said need not suit this one.
            if value is None:
                return self.seed if parameter.name == "seed" else parameter.default
            return parameter.check(value, f"{parameter.name} for {place.name}, which {rule.name} merges,")

        values: dict[str, Any] = {}
        for parameter in rule.options:
            value = settings.get(parameter.name)
            assert not isinstance(value, tuple)
            values[parameter.name] = checked(parameter, value)
        for parameter in rule.per_model:
            value = settings.get(parameter.name)
            each = value if isinstance(value, tuple) else (value,) * len(self.models)
            values[parameter.name] = [checked(parameter, one) for one in each]
        arguments = rule.arguments(values)
        if rule.random:
            arguments["name"] = place.name
        return rule, arguments


def _at(setting: Any, place: LayerPosition) -> Any:
    """What a setting says here, per model if it is; ``None`` where no case fits."""
    if isinstance(setting, tuple):
        return tuple(_at(one, place) for one in setting)
    return setting.at(place) if isinstance(setting, Gradient | Cases) else setting


def _over(old: Any, new: Any, count: int) -> Any:
    """A value over an older one: what is ``None``, whole or for a model, leaves the older."""
    if new is None:
        return old
    if not isinstance(new, tuple) or None not in new:
        return new
    before = old if isinstance(old, tuple) else (old,) * count
    return tuple(b if n is None else n for b, n in zip(before, new, strict=True))


def positions(names: Sequence[str]) -> dict[str, LayerPosition]:
    """The place of every tensor, from the layer numbers in the names."""
    layers = _layers(names)
    last = max(layers.values(), default=0)
    # A single layer is the end of its way, as in mergekit.
    share = {name: layer / last if last else 1.0 for name, layer in layers.items()}
    return {name: LayerPosition(name, share.get(name, 0.0)) for name in names}


def layer_count(names: Iterable[str]) -> int:
    """How many layers the tensors of a model belong to."""
    return max(_layers(names).values(), default=-1) + 1


def _layers(names: Iterable[str]) -> dict[str, int]:
    return {name: int(found.group(1)) for name in names if (found := _LAYER.search(name))}


def refuse_unmatched(recipe: Recipe, names: Sequence[str]) -> None:
    """Refuse an override that matches no tensor.

    Raises:
        InputError: names the pattern, and a tensor.
    """
    for override in recipe.overrides:
        if override.match != "*" and not any(fnmatchcase(name, override.match) for name in names):
            raise InputError(
                f"The override {override.match!r} matches no tensor.",
                f"Tensors are named like {next(iter(names), '?')}; * stands for anything.",
            )
