"""The table of methods: built-in ones, and plugins of installed packages.

A package offers a method by an entry point of the group :data:`GROUP` whose name is the method's::

    [project.entry-points."merganser.methods"]
    anchor = "merganser_anchor:Anchor"

Nothing of it is imported before its name is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from typing import Any

from merganser.errors import InputError
from merganser.methods.base import Method, MethodOptions
from merganser.plugins import offered, package_of

GROUP = "merganser.methods"


class MethodTable(Mapping[str, type[Method[Any]]]):
    """Mapping from names to methods.

    Looking up a name raises :class:`~merganser.errors.InputError` when two sides claim it, or when the package that
    offers it cannot be used; ``KeyError`` when none does. Iterating gives names and imports nothing.

    Args:
        built_in: methods that need no package.
    """

    def __init__(self, built_in: Mapping[str, type[Method[Any]]]) -> None:
        self.built_in = built_in

    def __getitem__(self, name: str) -> type[Method[Any]]:
        offers = [point for point in offered(GROUP) if point.name == name]
        if name in self.built_in and not offers:
            return self.built_in[name]
        if not offers:
            raise KeyError(name)
        if name in self.built_in or len(offers) > 1:
            claims = ["Merganser itself"] * (name in self.built_in) + [package_of(point) for point in offers]
            raise InputError(
                f"The method name '{name}' is claimed by {' and by '.join(claims)}.",
                "Uninstall all but one of them, or rename a method.",
            )
        return _load_method(offers[0])

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.built_in, *sorted(point.name for point in offered(GROUP))]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or any(point.name == name for point in offered(GROUP))


def _load_method(point: EntryPoint) -> type[Method[Any]]:
    """Load the method of an entry point, and check it.

    Raises:
        InputError: it cannot be imported, or it is no method of that name.
    """
    try:
        method = point.load()
    except Exception as error:  # whatever a package raises while it is imported
        raise InputError(
            f"The method '{point.name}' of {package_of(point)} cannot be loaded: {type(error).__name__}: {error}.",
            "Update or uninstall that package.",
        ) from error
    problem = _problem(point.name, method)
    if problem:
        raise InputError(
            f"The method '{point.name}' of {package_of(point)} cannot be used: {problem}.",
            "See docs/adding-a-method.md.",
        )
    return method


def _problem(name: str, method: Any) -> str | None:
    """Describe why an object cannot be the method ``name``; ``None`` if it can."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        return f"{method!r} is not a subclass of Method"
    for attribute in ("title", "paper", "idea"):
        if not isinstance(getattr(method, attribute, None), str):
            return f"it has no {attribute}"
    options = getattr(method, "Options", None)
    if not (isinstance(options, type) and issubclass(options, MethodOptions)):
        return "it has no Options"
    if options.model_fields["name"].default != name:
        return f"the name in its Options is not '{name}'"
    return None
