"""Translate a mergekit configuration to a recipe, for the rules that both have.

Where defaults differ, mergekit's are used (``dare`` and ``della`` rescale to equal L1 norm). Arithmetic is always
float32, ``dtype`` is only the type of the result, and the trimming rules keep ``round(density * n)`` entries instead of
``int(density * n)``. Settings without a counterpart are refused by name, never silently dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merganser.checkpoints.recipe import layer_count
from merganser.checkpoints.source import Source, open_checkpoint
from merganser.errors import InputError
from merganser.files.safetensors_file import FLOATING
from merganser.merging.rule import Rule
from merganser.merging.rules import get_rule

METHODS = (
    "linear",
    "task_arithmetic",
    "slerp",
    "karcher",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "model_stock",
)
"""Values of mergekit's ``merge_method`` that are rules here, under the same name."""

_RENAMED = {"lambda": "scale", "select_topk": "select"}
_SAME = ("weight", "density", "gamma", "epsilon", "normalize", "t", "max_iter", "tol", "filter_wise")
PARAMETERS = {**{name: name for name in _SAME}, **_RENAMED}
"""mergekit's parameter -> the parameter here."""

_TOP = {
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "modules",
}
_RESCALED = ("dare_linear", "dare_ties", "della", "della_linear")


def translate(content: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """Translate a mergekit configuration to the content of a ``merge.yaml``.

    Args:
        content: the parsed YAML.
        where: the file, for messages.

    Returns:
        The content for :func:`merganser.checkpoints.recipe_file.parse`, and notes for the user (settings that have no
        effect here).

    Raises:
        InputError: something that cannot be expressed, by its name in the file.
    """
    if not isinstance(content, Mapping) or "merge_method" not in content:
        raise InputError(f"{where} has no merge_method.", "Pass a configuration of mergekit-yaml.")
    for key in content:
        if key not in _TOP:
            raise _inexpressible(where, str(key))
    method = str(content["merge_method"])
    if method not in METHODS:
        raise InputError(
            f"{where}: merge_method {method!r} has no counterpart here.", f"Supported: {', '.join(METHODS)}."
        )
    notes: list[str] = []
    rule = get_rule(method)
    base = _model_name(content.get("base_model"), f"{where}: base_model") if content.get("base_model") else None
    entries, shared = _inputs(content, where)
    names = [_model_name(entry.get("model"), f"{where}: model") for entry in entries]
    tokenizer = _tokenizer_model(content, base, names, where)
    if len(set(names)) != len(names):
        raise _inexpressible(where, "the same model twice")
    result: dict[str, Any] = {"rule": rule.name}
    used = _order_models(method, entries, names, base, where)
    parameters = [*shared, _parameters(content, where)]
    models: list[dict[str, Any]] = []
    for entry in used:
        scopes = [_parameters(entry, f"{where}: {entry['model']}"), *parameters]
        models.append({"model": _model_name(entry["model"], where), **_per_model(rule, scopes, where)})
    result["models"] = models
    if rule.base == "required":
        if base is None:
            raise InputError(f"{where}: {method} needs base_model.", "Add it.")
        result["base"] = base
    result["options"] = _options(method, rule, parameters, where)
    _check_unused(method, rule, [_parameters(entry, where) for entry in entries] + parameters, notes, where)
    reference = result.get("base") or next((model["model"] for model in models), None)
    if tokenizer not in (None, reference):
        result["tokenizer_from"] = tokenizer
    dtype = content.get("out_dtype") or content.get("dtype")
    if dtype:
        result["dtype"] = str(dtype)
    if content.get("dtype"):
        notes.append("dtype: arithmetic is float32 here; it is taken as the type of the result.")
    return result, notes


def _inexpressible(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what} cannot be expressed here.", "Remove it, or run this merge with mergekit.")


def _parameters(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InputError(f"{where}: parameters is not a map.", "Write for example {weight: 0.5}.")
    return parameters


def _model_name(value: Any, where: str) -> str:
    """Return a model's path or hub id, with its revision and, after a ``+``, its adapter."""
    if isinstance(value, str):
        return value
    parts: list[Any] = [value.get("model"), value.get("lora")] if isinstance(value, Mapping) else [None]
    if parts[-1] is None and len(parts) > 1:
        parts.pop()
    if all(isinstance(part, Mapping) and isinstance(part.get("path"), str) for part in parts):
        return "+".join(part["path"] + (f"@{part['revision']}" if part.get("revision") else "") for part in parts)
    raise _inexpressible(where, f"the model reference {value!r}")


def _tokenizer_model(content: Mapping[str, Any], base: str | None, names: Sequence[str], where: str) -> str | None:
    """Return the model whose tokenizer is asked for, ``None`` where none is; refuse one that is made of several."""
    source = content.get("tokenizer_source")
    tokenizer = content.get("tokenizer")
    if isinstance(tokenizer, Mapping):
        if others := sorted(map(str, set(tokenizer) - {"source"})):
            raise _inexpressible(where, f"tokenizer.{others[0]}")
        source = tokenizer.get("source")
    if source == "base":
        source = base
    if source is not None and source not in (base, *names):
        raise _inexpressible(where, f"tokenizer source {source!r} (no model of the merge)")
    if content.get("chat_template"):
        raise _inexpressible(where, "chat_template")
    if content.get("modules"):
        raise _inexpressible(where, "modules")
    return source


def _inputs(content: Mapping[str, Any], where: str) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the models with their parameters, and the parameters that slices add.

    One slice that takes the same layers of every model, from the first on, is the same as ``models``;
    :func:`check_layers` checks that these are all layers.
    """
    if content.get("models"):
        if content.get("slices"):
            raise InputError(f"{where} has models and slices.", "Keep one of them, as mergekit requires.")
        entries = content["models"]
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise InputError(f"{where}: models is not a list of maps.", "Correct it there.")
        return list(entries), []
    slices = content.get("slices")
    if not isinstance(slices, list) or not slices:
        raise InputError(f"{where} has neither models nor slices.", "Add one of them.")
    if len(slices) > 1:
        raise _inexpressible(where, "more than one slice")
    if not isinstance(slices[0], Mapping):
        raise InputError(f"{where}: slices[0] is not a map.", "Correct it there.")
    sources = slices[0].get("sources")
    if not isinstance(sources, list) or not sources:
        raise InputError(f"{where}: slices[0] has no sources.", "Correct it there.")
    ranges = {_layer_range(source, f"{where}: slices[0].sources[{index}]") for index, source in enumerate(sources)}
    if len(ranges) != 1 or next(iter(ranges))[0] != 0:
        raise _inexpressible(where, "slices whose layer_range is not [0, number of layers] for every model")
    if others := sorted(map(str, set(slices[0]) - {"sources", "parameters"})):
        raise _inexpressible(where, f"slices[0].{others[0]}")
    return list(sources), [_parameters(slices[0], f"{where}: slices[0]")]


def _layer_range(source: Any, where: str) -> tuple[int, int]:
    if not isinstance(source, Mapping):
        raise InputError(f"{where} is not a map.", "Write {model: NAME, layer_range: [0, NUMBER]}.")
    layers = source.get("layer_range")
    if not isinstance(layers, list) or len(layers) != 2 or not all(type(number) is int for number in layers):
        raise InputError(f"{where}.layer_range is {layers!r}.", "Write [0, NUMBER] with the number of layers.")
    return layers[0], layers[1]


def check_layers(content: Any, model: Source, where: str) -> None:
    """Refuse a slice of fewer layers than the model has: the result would have another architecture.

    Args:
        content: the configuration.
        model: one of its models, whose tensors are read.
        where: the file, for messages.

    Raises:
        InputError: the slice is shorter; gives both numbers of layers.
    """
    slices = content.get("slices") if isinstance(content, Mapping) else None
    if not slices:
        return
    _, taken = _layer_range(slices[0]["sources"][0], where)
    has = layer_count(open_checkpoint(model).tensors)
    if taken != has:
        raise _inexpressible(where, f"a slice of {taken} layers of a model that has {has}")


def check_filters(content: Mapping[str, Any], model: Source, where: str) -> None:
    """Refuse filters that leave a tensor without a value that mergekit requires.

    Args:
        content: the result of :func:`translate`.
        model: one of the models, whose tensors are read.
        where: the file, for messages.

    Raises:
        InputError: a tensor has no value; names it and the parameter.
    """
    required = [("weight", model.get("weight")) for model in content["models"]]
    required.append(("t", content["options"].get("t")))
    incomplete = [
        (key, [case["contains"] for case in setting["cases"]])
        for key, setting in required
        if isinstance(setting, Mapping) and "cases" in setting and "contains" in setting["cases"][-1]
    ]
    if not incomplete:
        return
    for name, tensor in open_checkpoint(model).tensors.items():
        for key, texts in incomplete:
            if tensor.dtype in FLOATING and not any(text in name for text in texts):
                raise InputError(
                    f"{where}: {key} has no value for {name}, which matches no filter.",
                    "Add {value: NUMBER} without a filter at the end of the list.",
                )


def _order_models(
    method: str, entries: Sequence[Mapping[str, Any]], names: Sequence[str], base: str | None, where: str
) -> list[Mapping[str, Any]]:
    """Order the models as the rule takes them: without the base, or with the base first (slerp)."""
    others = [entry for entry, name in zip(entries, names, strict=True) if name != base]
    if method == "slerp":
        if base is None or len(others) != 1:
            raise InputError(f"{where}: slerp needs base_model and one other model.", "Correct it there.")
        first = [entry for entry, name in zip(entries, names, strict=True) if name == base] or [{"model": base}]
        return [*first, *others]
    if method in ("linear", "karcher"):
        missing = base is not None and base not in names
        return [*entries, {"model": base}] if missing else list(entries)
    return others


def _per_model(rule: Rule, scopes: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Resolve the settings of one model: its own, else the slice's, else the general ones."""
    settings: dict[str, Any] = {}
    if rule.name == "karcher":
        return settings
    for theirs, ours in PARAMETERS.items():
        if ours not in {parameter.name for parameter in rule.per_model}:
            continue
        values = [scope[theirs] for scope in scopes if theirs in scope]
        if values:
            settings[ours] = _parse_setting(values, f"{where}: parameters.{theirs}")
        elif ours == "weight":
            raise InputError(f"{where}: a model has no weight.", "mergekit requires one; add it.")
    return settings


def _options(method: str, rule: Rule, scopes: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in rule.options}
    settings: dict[str, Any] = {}
    for theirs, ours in PARAMETERS.items():
        if ours in known:
            values = [scope[theirs] for scope in scopes if theirs in scope]
            if values and isinstance(known[ours].default, bool) and not isinstance(values[0], list | Mapping):
                settings[ours] = _parse_boolean(values[0], f"{where}: parameters.{theirs}")
            elif values:
                settings[ours] = _parse_setting(values, f"{where}: parameters.{theirs}")
    if method in _RESCALED:
        values = [scope["rescale"] for scope in scopes if "rescale" in scope]
        settings["rescale"] = (
            "l1" if not values or _parse_boolean(values[0], f"{where}: parameters.rescale") else "none"
        )
    if method == "slerp" and "t" not in settings:
        raise InputError(f"{where}: slerp has no t.", "mergekit requires one; add it under parameters.")
    return settings


def _parse_boolean(value: Any, where: str) -> bool:
    """Parse a boolean; programs that write such files may write 1.0 and 0.0."""
    if value not in (0, 1):
        raise InputError(f"{where} is {value!r}.", "Use true or false.")
    return bool(value)


def _parse_setting(values: Sequence[Any], where: str) -> Any:
    """Parse a value, a gradient or conditions; where no condition fits, the next scope's setting applies."""
    cases: list[dict[str, Any]] = []
    for setting in values:
        if isinstance(setting, Mapping):
            setting = [setting]
        if isinstance(setting, list) and setting and all(isinstance(condition, Mapping) for condition in setting):
            for condition in setting:
                case = {"value": _parse_value(condition.get("value"), where)}
                if condition.get("filter") not in (None, "*"):
                    case["contains"] = str(condition["filter"])
                cases.append(case)
        else:
            cases.append({"value": _parse_value(setting, where)})
        if "contains" not in cases[-1]:
            break
    return cases[0]["value"] if "contains" not in cases[0] else {"cases": cases}


def _parse_value(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return {"layers": list(value)}
    if isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"{where} is {value!r}.", "Use a value, a list over the layers, or a list of filters.")


def _check_unused(method: str, rule: Rule, scopes: Sequence[Mapping[str, Any]], notes: list[str], where: str) -> None:
    """Add notes on parameters without effect, and refuse unsupported ones that would change the result."""
    known = {parameter.name for parameter in (*rule.per_model, *rule.options)}
    if method == "karcher":
        known.discard("weight")
    for scope in scopes:
        for key, value in scope.items():
            if PARAMETERS.get(key) in known or (key == "rescale" and method in _RESCALED):
                continue
            if key == "int8_mask":
                note = "int8_mask: only saves memory in mergekit; it has no effect here."
            elif key == "rescale" and not value:
                continue
            elif key == "rescale" and method not in ("task_arithmetic",):
                raise _inexpressible(where, f"rescale with {method}")
            else:
                note = f"{key}: {method} takes no such parameter; it has no effect in mergekit either."
            if note not in notes:
                notes.append(note)
