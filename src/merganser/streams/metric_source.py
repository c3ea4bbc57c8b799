"""Find the function that scores a task by the name that a file or a record gives it.

A name is ``module:function``, or that of an entry point of the group :data:`GROUP` in an installed package::

    [project.entry-points."merganser.metrics"]
    politeness = "my_package.scores:politeness"

A record has ``merganser.metrics:politeness`` for such a metric. Only functions whose parameters are ``answers``,
``references`` and, if it needs them, ``inputs`` are ever called
(:func:`~merganser.metrics.function.parameter_problem`).
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator

from merganser.errors import InputError, first_line, nearest
from merganser.metrics.function import CONTRACT, NamedMetric, is_function_name, parameter_problem
from merganser.metrics.text import TEXT_SCORES
from merganser.plugins import offered, package_of

GROUP = "merganser.metrics"

PREFIX = f"{GROUP}:"
"""Before the name of an entry point in a record, so that a run can be read where its package is not installed."""


def metric_names() -> list[str]:
    """Return the names of all metrics: the built-in ones, then those of installed packages."""
    return list(dict.fromkeys([*TEXT_SCORES, *sorted(point.name for point in offered(GROUP))]))


def name_problem(name: str) -> str:
    """Return why a name cannot be that of a metric, or an empty string; nothing is imported."""
    if is_function_name(name):
        module, _, attribute = name.partition(":")
        if all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            return ""
        return f"{name!r} is no 'module:function'"
    if name in metric_names():
        return ""
    hint = nearest(name, metric_names()) or f"Use {', '.join(metric_names())}, or a function of your own"
    return f"there is no metric {name!r}. {hint} (module:function)".replace("? (module:function)", "?")


def recorded_name(name: str) -> str:
    """Return the name of a metric as records have it: with :data:`PREFIX` if an installed package offers it."""
    return f"{PREFIX}{name}" if name not in TEXT_SCORES and ":" not in name else name


def _checked(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(problem)
    return recorded_name(name)


MetricOption = Annotated[str, AfterValidator(_checked)]
"""The name of a metric in a file of options."""


def find_metric(name: str, folder: Path | None = None) -> NamedMetric:
    """Import the function of a name.

    Args:
        name: as in a file or a record; no built-in metric.
        folder: also sought in, after Python's search path, where a person names the metric: the folder of the run's
            file. Never that of a run, which may come from anywhere.

    Raises:
        InputError: it cannot be imported, or is no function of answers, references and inputs.
    """
    if name.startswith(PREFIX) or not is_function_name(name):
        return _of_package(name.removeprefix(PREFIX))
    if name_problem(name):
        raise InputError("A function within another one, or without a name, is in no module.", "Move it into one.")
    module_name, _, attribute = name.partition(":")
    module = _import(name, module_name, folder)
    return NamedMetric(name, _function(name, module, attribute), _source(module))


def _of_package(name: str) -> NamedMetric:
    points = [point for point in offered(GROUP) if point.name == name]
    if not points:
        raise InputError(
            f"The metric '{name}' comes from a package that is not installed here.", "Install the package."
        )
    if name in TEXT_SCORES or len(points) > 1:
        claims = ["Merganser itself"] * (name in TEXT_SCORES) + [package_of(point) for point in points]
        raise InputError(
            f"The metric name '{name}' is claimed by {' and by '.join(claims)}.",
            "Uninstall all but one of them, or name the function itself: module:function.",
        )
    return _loaded(points[0])


def _loaded(point: EntryPoint) -> NamedMetric:
    try:
        function = point.load()
    except Exception as error:  # whatever a package raises while it is imported
        raise InputError(
            f"The metric '{point.name}' of {package_of(point)} cannot be loaded: {type(error).__name__}: "
            f"{first_line(error)}.",
            "Update or uninstall that package.",
        ) from error
    if problem := parameter_problem(function):
        raise InputError(f"The metric '{point.name}' of {package_of(point)} cannot be used: {problem}.", CONTRACT)
    version = f"{point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return NamedMetric(recorded_name(point.name), function, version)


def _import(name: str, module_name: str, folder: Path | None) -> ModuleType:
    top = module_name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__main__":
        raise InputError(f"The metric '{name}' is in no module of yours.", "Put the function into a file of its own.")
    path = [*sys.path, *([] if folder is None else [str(folder.resolve())])]
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(top, path)
    where = "Python's search path" if folder is None else f"Python's search path and in {folder}"
    if spec is None:
        raise InputError(
            f"The module '{top}' of the metric '{name}' is not on {where}.",
            "Install it, or put its folder on the path: PYTHONPATH=FOLDER merganser ...",
        )
    loaded = sys.modules.get(top)
    if loaded is not None and _file(loaded.__spec__) != _file(spec):
        raise InputError(
            f"The module '{top}' of the metric '{name}' is {_file(spec)}, and another one of that name is in use: "
            f"{_file(loaded.__spec__)}.",
            "Rename one of them.",
        )
    if PathFinder.find_spec(top, sys.path) is None:
        sys.path.append(path[-1])  # it stays: the function may import what is beside it when it is called
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # whatever the module raises while it is imported
        raise InputError(
            f"The module '{module_name}' of the metric '{name}' cannot be imported: {type(error).__name__}: "
            f"{first_line(error)}.",
            f"Correct it; python -c 'import {module_name}' shows where.",
        ) from error


def _file(spec: ModuleSpec | None) -> str:
    """Return the file, or the first folder, that a module was found in."""
    if spec is None:
        return ""
    return str(Path(spec.origin).resolve()) if spec.has_location and spec.origin else next(iter(_folders(spec)), "")


def _folders(spec: ModuleSpec) -> Iterator[str]:
    yield from (str(Path(folder).resolve()) for folder in spec.submodule_search_locations or ())


def _function(name: str, module: ModuleType, attribute: str) -> Any:
    member: Any = module
    for part in attribute.split("."):
        if not hasattr(member, part):
            functions = [key for key, value in vars(module).items() if not parameter_problem(value)]
            hint = nearest(attribute, functions) or f"Metrics in it: {', '.join(functions) or 'none'}."
            raise InputError(f"The module '{module.__name__}' has no '{attribute}' (metric '{name}').", hint)
        member = getattr(member, part)
    if problem := parameter_problem(member):
        raise InputError(f"The metric '{name}' cannot be used: {problem}.", CONTRACT)
    return member


def _source(module: ModuleType) -> str:
    """Return file name and SHA-256 of a module, for the record."""
    path = Path(module.__file__ or "")
    return f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else ""
