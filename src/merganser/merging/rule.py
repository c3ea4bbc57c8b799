"""Description of a merging rule: its function, parameters and needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from merganser.errors import InputError, nearest

Value = float | int | bool | str


@dataclass(frozen=True)
class Parameter:
    """A parameter of a rule: a number, a boolean or one of several words.

    Attributes:
        name: as in the rule's function and in ``merge.yaml``.
        default: value when none is given.
        help: description in one line.
        low, high: limits of a number, both allowed.
        choices: the words allowed, for a word.
    """

    name: str
    default: Value
    help: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()

    def check(self, value: Any, where: str) -> Value:
        """Check a value and convert it to the parameter's type.

        Args:
            value: from a file or a command line that was already read into YAML types.
            where: the key, for messages.

        Raises:
            InputError: wrong type, or outside the limits.
        """
        if self.choices:
            if value not in self.choices:
                raise InputError(f"{where} is {value!r}.", f"Choose from {', '.join(self.choices)}.")
            return str(value)
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise InputError(f"{where} is {value!r}.", "Use true or false.")
            return value
        number = _number(value, where)
        if not self.low <= number <= self.high:
            limits = f"between {self.low:g} and {self.high:g}" if self.high < math.inf else f"at least {self.low:g}"
            raise InputError(f"{where} is {number:g}.", f"It must be {limits}.")
        if isinstance(self.default, int):
            if number != int(number):
                raise InputError(f"{where} is {number:g}.", "It must be a whole number.")
            return int(number)
        return number


def _number(value: Any, where: str) -> float:
    if isinstance(value, str):
        # YAML 1.1 reads 1e-8 as a word.
        try:
            value = float(value)
        except ValueError:
            value = None
    try:
        # An integer may be too long for a float.
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where} is not a finite number.", "Write one, for example 0.5.")
    return number


WEIGHT = Parameter("weight", 1.0, "weight of the model")
DENSITY = Parameter("density", 1.0, "fraction of the entries of an update that is kept", 0.0, 1.0)
SCALE = Parameter("scale", 1.0, "factor on the merged update (lambda in papers)")
NORMALIZE = Parameter("normalize", True, "divide by the sum of the weights")
SEED = Parameter("seed", 0, "seed of the random masks")


class WrongInput(InputError):
    """An input that a rule cannot merge.

    Args:
        index: of the input, counting the models, then their Fishers.
        what: the problem, worded to follow the name of a tensor.
        remedy: what to do about it.
    """

    def __init__(self, index: int, what: str, remedy: str) -> None:
        super().__init__(f"An input {what}", remedy)
        self.index, self.what = index, what


@dataclass(frozen=True)
class Rule:
    """A merging rule.

    Attributes:
        name: as in recipes and on the command line.
        function: the pure function: ``function(models, base=None, **parameters)``.
        summary: one line for ``merganser merge --list``.
        source: the paper.
        base: whether a base model is needed.
        min_models, max_models: how many models besides the base.
        per_model: parameters with one value per model; the function takes them under ``argument(name)``.
        options: parameters with one value.
        prepare: computes the plan of one tensor (thresholds, coefficients) from its inputs. Where it is ``None`` or
            returns ``None``, the rule needs the whole tensor and ``function`` is called on it.
        apply: ``apply(models, base, plan, start)`` on a slice that begins at element ``start``.
        extra: name of a second tensor per model that the rule needs (Fisher information).
        random: takes ``seed`` and ``name``.
        linear: the merged update is a weighted sum of the updates, so that it is exact on LoRA factors too.
    """

    name: str
    function: Callable[..., Any]
    summary: str
    source: str
    base: Literal["required", "none"]
    min_models: int = 1
    max_models: int | None = None
    per_model: tuple[Parameter, ...] = ()
    options: tuple[Parameter, ...] = ()
    prepare: Callable[..., Any] | None = None
    apply: Callable[..., Any] | None = None
    extra: str | None = None
    random: bool = False
    linear: bool = False

    def parameter(self, name: str, where: str) -> Parameter:
        """Look a parameter up by its name.

        Args:
            name: of the parameter.
            where: the key, for messages.

        Raises:
            InputError: the rule takes no such parameter.
        """
        known = {parameter.name: parameter for parameter in (*self.per_model, *self.options)}
        if name not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes no parameters."
            raise InputError(
                f"{where}: the rule {self.name} takes no '{name}'.", f"{nearest(name, known)} {takes}".strip()
            )
        return known[name]

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Map parameters to keyword arguments of ``function`` and ``prepare``: ``weight`` becomes ``weights``."""
        plural = {parameter.name: argument(parameter.name) for parameter in self.per_model}
        return {plural.get(name, name): value for name, value in values.items()}


def argument(name: str) -> str:
    """Return the name of the function's argument for a per-model parameter: ``weight`` -> ``weights``."""
    return "weights" if name == "weight" else name


def check_count(name: str, count: int, low: int, high: int | None = None) -> None:
    """Refuse a number of models that a rule cannot merge.

    Raises:
        InputError: too few or too many.
    """
    if count < low or (high is not None and count > high):
        accepted = f"exactly {low}" if high == low else f"at least {low}" if high is None else f"{low} to {high}"
        raise InputError(f"The rule {name} got {count} model(s).", f"It needs {accepted}, besides the base.")


def sum_weights(weights: Sequence[float]) -> float:
    """Sum the weights, rounded once.

    Raises:
        InputError: the sum overflows.
    """
    try:
        return math.fsum(weights)
    except OverflowError as error:
        raise InputError(
            f"The weights {', '.join(f'{weight:g}' for weight in weights)} have no finite sum.", "Use smaller ones."
        ) from error


def check_weights(weights: Sequence[float], normalize: bool, always: bool = False) -> None:
    """Refuse weights that cannot be normalised.

    Args:
        weights: one per model.
        normalize: whether they are to be normalised.
        always: the rule always normalises, so the remedy does not suggest ``normalize: false``.

    Raises:
        InputError: they sum to (almost) zero, or to no finite number.
    """
    if normalize and abs(sum_weights(weights)) < 1e-8:
        raise InputError(
            f"The weights {', '.join(f'{weight:g}' for weight in weights)} sum to zero and cannot be normalised.",
            "Change them." if always else "Change them, or set normalize: false.",
        )
