"""Reading and writing ``merge.yaml``: every key checked, with its path in the message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merganser.checkpoints.dtypes import SHORT_NAMES, TORCH_NAMES
from merganser.checkpoints.recipe import Cases, Gradient, Override, Recipe, Setting
from merganser.errors import InputError, nearest
from merganser.merging.rule import Parameter, Rule, Value, check_count
from merganser.merging.table import rule as rule_named

_KEYS = (
    "rule",
    "models",
    "base",
    "options",
    "overrides",
    "dtype",
    "seed",
    "common_only",
    "ignore_vocabulary",
    "allow_nonfinite",
    "space",
    "rank",
    "allow_different_bases",
)


def parse(content: Any, where: str) -> Recipe:
    """A recipe from the content of a ``merge.yaml``.

    Args:
        content: what the YAML reader gave.
        where: the file, for messages.

    Raises:
        InputError: an unknown key, a wrong type, an impossible value: with the path of the key.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{where} is not a map of keys.", "See docs/merging.md for an example.")
    for key in content:
        if key not in _KEYS:
            raise InputError(
                f"{where}: unknown key '{key}'.", f"{nearest(str(key), _KEYS)} Known: {', '.join(_KEYS)}.".strip()
            )
    rule = rule_named(_text(content.get("rule"), f"{where}: rule"))
    models, fishers, per_model = _models(content.get("models"), rule, where)
    base = content.get("base")
    options = content.get("options") or {}
    if not isinstance(options, Mapping):
        raise InputError(f"{where}: options is not a map.", "Write for example {normalize: false}.")
    general = {
        key: _settings(rule, str(key), value, len(models), f"{where}: options", f"{where}: options.{key}")
        for key, value in options.items()
        if key != "seed"
    }
    if "seed" in options:
        raise InputError(f"{where}: seed is among the options.", "It is a key of its own, beside rule.")
    overrides = [Override(settings=general), Override(settings=per_model)]
    entries = content.get("overrides") or []
    if not isinstance(entries, list):
        raise InputError(f"{where}: overrides is not a list.", "Write a list of maps with the key match.")
    for index, entry in enumerate(entries):
        overrides.append(_override(entry, rule, len(models), f"{where}: overrides[{index}]"))
    recipe = Recipe(
        models=models,
        base=None if base is None else _text(base, f"{where}: base"),
        rule=rule.name,
        overrides=tuple(overrides),
        fishers=fishers,
        dtype=dtype_named(content.get("dtype"), f"{where}: dtype"),
        seed=int(Parameter("seed", 0, "").check(content.get("seed", 0), f"{where}: seed")),
        common_only=_switch(content, "common_only", where),
        ignore_vocabulary=_switch(content, "ignore_vocabulary", where),
        allow_nonfinite=_switch(content, "allow_nonfinite", where),
        space=str(
            Parameter("space", "update", "", choices=("update", "factors")).check(
                content.get("space", "update"), f"{where}: space"
            )
        ),
        rank=None
        if content.get("rank") is None
        else int(Parameter("rank", 1, "", low=1).check(content["rank"], f"{where}: rank")),
        allow_different_bases=_switch(content, "allow_different_bases", where),
    )
    check(recipe)
    return recipe


def check(recipe: Recipe) -> None:
    """Refuse what the rules cannot take: number of models, no base, no fishers.

    Raises:
        InputError: names the rule and what it lacks.
    """
    for name in {recipe.rule, *(override.rule for override in recipe.overrides if override.rule)}:
        rule = rule_named(name)
        check_count(name, len(recipe.models), rule.min_models, rule.max_models)
        if rule.extra and len(recipe.fishers) != len(recipe.models):
            raise InputError(
                f"The rule {name} needs a {rule.extra} file for every model.",
                f"Give each model the key {rule.extra}: a checkpoint with the same names and shapes.",
            )


def _models(entries: Any, rule: Rule, where: str) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: models is not a list of models.", "Write a list of paths or of maps with 'model'.")
    names: list[str] = []
    fishers: list[str] = []
    given: dict[str, list[Any]] = {}
    for index, entry in enumerate(entries):
        at = f"{where}: models[{index}]"
        if isinstance(entry, str):
            entry = {"model": entry}
        if not isinstance(entry, Mapping):
            raise InputError(f"{at} is {entry!r}.", "Write a path, or a map with the key 'model'.")
        names.append(_text(entry.get("model"), f"{at}.model"))
        for key, value in entry.items():
            if key == "model":
                continue
            if rule.extra and key == rule.extra:
                fishers.append(_text(value, f"{at}.{key}"))
                continue
            known = {parameter.name: parameter for parameter in rule.per_model}
            if key not in known:
                takes = ", ".join(("model", *known, *([rule.extra] if rule.extra else [])))
                raise InputError(
                    f"{at}: unknown key '{key}'.", f"{nearest(str(key), known)} A model of {rule.name} takes {takes}."
                )
            given.setdefault(str(key), [None] * len(entries))[index] = _setting(known[str(key)], value, f"{at}.{key}")
    return tuple(names), tuple(fishers), {key: tuple(values) for key, values in given.items()}


def _override(entry: Any, rule: Rule, count: int, where: str) -> Override:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("match"), str):
        raise InputError(f"{where} has no pattern.", "Write a map with the key match, for example match: '*.mlp.*'.")
    own = rule_named(_text(entry["rule"], f"{where}.rule")) if entry.get("rule") is not None else rule
    settings: dict[str, Any] = {}
    keep = False
    for key, value in entry.items():
        if key in ("match", "rule"):
            continue
        if key == "from":
            if value != "base":
                raise InputError(f"{where}.from is {value!r}.", "Only 'base' can be kept.")
            keep = True
            continue
        settings[str(key)] = _settings(own, str(key), value, count, where, f"{where}.{key}")
    return Override(match=entry["match"], rule=own.name if "rule" in entry else None, settings=settings, keep_base=keep)


def _settings(rule: Rule, key: str, value: Any, count: int, scope: str, where: str) -> Any:
    """One setting, or one per model from a list for a parameter that models have."""
    parameter = rule.parameter(key, scope)
    if not isinstance(value, list):
        return _setting(parameter, value, where)
    if parameter not in rule.per_model:
        layers = " Over the layers it may change: {layers: [...]}." if isinstance(parameter.default, float) else ""
        raise InputError(f"{where} is a list.", f"{key} is not said per model: give one value.{layers}")
    if len(value) != count:
        raise InputError(f"{where} has {len(value)} values for {count} models.", "Give one per model, or one for all.")
    return tuple(_setting(parameter, one, f"{where}[{index}]") for index, one in enumerate(value))


def _setting(parameter: Parameter, value: Any, where: str) -> Setting:
    if not isinstance(value, Mapping):
        return parameter.check(value, where)
    if set(value) == {"layers"}:
        return gradient(parameter, value["layers"], where)
    if set(value) == {"cases"} and isinstance(value["cases"], list) and value["cases"]:
        cases: list[tuple[str | None, Value | Gradient]] = []
        for index, case in enumerate(value["cases"]):
            at = f"{where}.cases[{index}]"
            if not isinstance(case, Mapping) or not set(case) <= {"contains", "value"} or "value" not in case:
                raise InputError(
                    f"{at} is {case!r}.", "Write {contains: text, value: number}, the text being optional."
                )
            found = _setting(parameter, case["value"], f"{at}.value")
            if isinstance(found, Cases):
                raise InputError(f"{at} holds cases again.", "Cases hold numbers or layers.")
            contains = case.get("contains")
            cases.append((None if contains is None else _text(contains, f"{at}.contains"), found))
        return Cases(tuple(cases))
    raise InputError(f"{where} is {dict(value)!r}.", "Write a value, {layers: [...]} or {cases: [...]}.")


def gradient(parameter: Parameter, values: Any, where: str) -> Gradient:
    """A :class:`Gradient` from a list of numbers.

    Raises:
        InputError: an empty list, or a parameter that is no fraction.
    """
    if not isinstance(values, list) or not values:
        raise InputError(f"{where} is not a list of numbers.", "Write for example [0, 0.5, 1].")
    if isinstance(parameter.default, bool | str | int):
        raise InputError(f"{where} changes over the layers.", f"{parameter.name} can't: give one value.")
    return Gradient(tuple(float(parameter.check(value, f"{where}[{i}]")) for i, value in enumerate(values)))


def dtype_named(value: Any, where: str) -> str | None:
    """The storage type of a name such as ``bfloat16`` or ``bf16``; ``None`` stays.

    Raises:
        InputError: another name.
    """
    if value is None:
        return None
    name = SHORT_NAMES.get(str(value), str(value))
    if name not in TORCH_NAMES:
        raise InputError(f"{where} is {value!r}.", f"Choose from {', '.join((*TORCH_NAMES, *SHORT_NAMES))}.")
    return TORCH_NAMES[name]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} is missing or no text.", "Write a name or a path.")
    return value


def _switch(content: Mapping[str, Any], key: str, where: str) -> bool:
    return bool(Parameter(key, False, "").check(content.get(key, False), f"{where}: {key}"))


def to_content(recipe: Recipe) -> dict[str, Any]:
    """The recipe as the content of a ``merge.yaml`` that :func:`parse` reads back."""
    general = recipe.overrides[0].settings if recipe.overrides else {}
    per_model = recipe.overrides[1].settings if len(recipe.overrides) > 1 else {}
    models: list[Any] = []
    for index, name in enumerate(recipe.models):
        entry: dict[str, Any] = {"model": name}
        for key, setting in per_model.items():
            value = setting[index] if isinstance(setting, tuple) else setting
            if value is not None:
                entry[key] = _plain(value)
        if recipe.fishers:
            entry[str(rule_named(recipe.rule).extra)] = recipe.fishers[index]
        models.append(entry)
    names = {stored: name for name, stored in TORCH_NAMES.items()}
    content: dict[str, Any] = {"rule": recipe.rule, "models": models}
    if recipe.base is not None:
        content["base"] = recipe.base
    if general:
        content["options"] = {key: _plain(value) for key, value in general.items()}
    overrides = []
    for override in recipe.overrides[2:]:
        entry = {"match": override.match}
        if override.rule:
            entry["rule"] = override.rule
        if override.keep_base:
            entry["from"] = "base"
        entry.update({key: _plain(value) for key, value in override.settings.items()})
        overrides.append(entry)
    if overrides:
        content["overrides"] = overrides
    if recipe.dtype:
        content["dtype"] = names[recipe.dtype]
    content["seed"] = recipe.seed
    for key in ("common_only", "ignore_vocabulary", "allow_nonfinite", "allow_different_bases"):
        if getattr(recipe, key):
            content[key] = True
    if recipe.space != "update":
        content["space"] = recipe.space
    if recipe.rank is not None:
        content["rank"] = recipe.rank
    return content


def _plain(setting: Any) -> Any:
    if isinstance(setting, tuple):
        return [_plain(one) for one in setting]
    if isinstance(setting, Gradient):
        return {"layers": list(setting.values)}
    if isinstance(setting, Cases):
        return {
            "cases": [
                {"value": _plain(value)} if contains is None else {"contains": contains, "value": _plain(value)}
                for contains, value in setting.cases
            ]
        }
    return setting
