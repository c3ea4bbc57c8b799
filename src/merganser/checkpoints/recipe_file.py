"""Read ``merge.yaml`` into a :class:`merganser.checkpoints.recipe.Recipe`; messages name the path of the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merganser.checkpoints.recipe import Case, Recipe
from merganser.errors import InputError, nearest
from merganser.files.documents import Malformed, parse_yaml, read_text
from merganser.merging.rules import RULES
from merganser.options import first_problem, problem_text


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a file.

    Raises:
        InputError: see :func:`read_yaml_file` and :func:`parse`.
    """
    return parse(read_yaml_file(path), str(path))


def parse(content: Any, where: str) -> Recipe:
    """Check the content of a ``merge.yaml``.

    Args:
        content: the parsed YAML.
        where: the file, for messages.

    Raises:
        InputError: an unknown key, a wrong type, an impossible value: with the path of the key.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{where} is not a map of keys.", "See docs/merging.md for an example.")
    with explained(where):
        return Recipe.model_validate(dict(content))


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Prefix errors of a recipe that is made or changed inside with the file (or the command line).

    Raises:
        InputError: instead of pydantic's error; with the path of the key.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error.cause}", error.remedy) from error
    except ValidationError as error:
        raise _explain(error, where) from error


def _explain(error: ValidationError, where: str) -> InputError:
    """Convert the first problem to one message with the path of the key."""
    first = first_problem(error)
    path = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = Recipe.model_fields if len(first["loc"]) == 1 else Case.model_fields
        hint = nearest(key, known) or (_parameter_hint(key) if len(first["loc"]) == 1 else "")
        remedy = f"{hint} Known keys: {', '.join(known)}.".strip()
        return InputError(f"{where}: {path}: unknown key.", remedy)
    remedy = "`merganser schema --merge` describes every key."
    if first["type"] == "missing":
        return InputError(f"{where}: {path} is missing.", f"Add it; {remedy}")
    return InputError(f"{where}: {path}: {problem_text(first)}.", remedy)


def _parameter_hint(key: str) -> str:
    """Return where to write a rule's parameter that stands at the top of the file; nothing for other words."""
    names = {parameter.name for rule in RULES.values() for parameter in (*rule.per_model, *rule.options)}
    hint = nearest(key, sorted(names))
    return hint and f"{hint} It is a parameter of a rule: write it under options or beside a model."


def _path(location: Sequence[str | int]) -> str:
    """Format a location as ``models[0].weight``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def read_yaml_file(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a map.

    Raises:
        InputError: it cannot be read, is not YAML or holds something else.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except Malformed as error:
        raise InputError(f"{path} is not YAML: {error}.", "Correct it there.") from error
    content = read_yaml(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a map of keys.", "See docs/merging.md for an example.")
    return content


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML text.

    Raises:
        InputError: it is not YAML.
    """
    try:
        return parse_yaml(text)
    except Malformed as error:
        raise InputError(f"{where} is not YAML: {error}.", "Correct it there.") from error
