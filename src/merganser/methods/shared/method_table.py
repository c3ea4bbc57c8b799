"""The table of methods: those that come with Merganser, and those that installed packages offer.

A package offers a method by an entry point of the group :data:`GROUP` whose name is the method's::

    [project.entry-points."merganser.methods"]
    anchor = "merganser_anchor:Anchor"

Nothing of it is imported before its name is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from merganser.errors import InputError
from merganser.methods.base import Method, MethodOptions

GROUP = "merganser.methods"


class MethodTable(Mapping[str, type[Method[Any]]]):
    """Name -> method.

    Looking up a name raises :class:`~merganser.errors.InputError` when two sides claim it, or when the package that
    offers it cannot be used; ``KeyError`` when nobody does. Iterating gives names and imports nothing.

    Args:
        built_in: methods that need no package.
    """

    def __init__(self, built_in: Mapping[str, type[Method[Any]]]) -> None:
        self.built_in = built_in

    def __getitem__(self, name: str) -> type[Method[Any]]:
        offers = [point for point in entry_points(group=GROUP) if point.name == name]
        if name in self.built_in and not offers:
            return self.built_in[name]
        if not offers:
            raise KeyError(name)
        if name in self.built_in or len(offers) > 1:
            claims = ["Merganser itself"] * (name in self.built_in) + [_package(point) for point in offers]
            raise InputError(
                f"The method name '{name}' is claimed by {' and by '.join(claims)}.",
                "Uninstall all but one of them, or rename a method.",
            )
        return _loaded(offers[0])

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.built_in, *sorted(point.name for point in entry_points(group=GROUP))]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or any(point.name == name for point in entry_points(group=GROUP))


def _package(point: EntryPoint) -> str:
    return f"the package '{point.dist.name}'" if point.dist is not None else f"'{point.value}'"


def _loaded(point: EntryPoint) -> type[Method[Any]]:
    """The method behind an entry point, checked.

    Raises:
        InputError: it cannot be imported, or it is no method of that name.
    """
    try:
        found = point.load()
    except Exception as error:  # whatever a package raises while it is imported
        raise InputError(
            f"The method '{point.name}' of {_package(point)} cannot be loaded: {type(error).__name__}: {error}.",
            "Update or uninstall that package.",
        ) from error
    problem = _problem(point.name, found)
    if problem:
        raise InputError(
            f"The method '{point.name}' of {_package(point)} cannot be used: {problem}.",
            "See docs/adding-a-method.md.",
        )
    return found


def _problem(name: str, found: Any) -> str | None:
    """What keeps ``found`` from being the method ``name``, if anything."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        return f"{found!r} is no subclass of Method"
    for attribute in ("title", "paper", "idea"):
        if not isinstance(getattr(found, attribute, None), str):
            return f"it has no {attribute}"
    options = getattr(found, "Options", None)
    if not (isinstance(options, type) and issubclass(options, MethodOptions)):
        return "it has no Options"
    if options.model_fields["name"].default != name:
        return f"the name in its Options is not '{name}'"
    return None
