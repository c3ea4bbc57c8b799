"""A function as a task's metric: how it is called, checked and named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merganser.errors import InputError, MerganserError, first_line, short

MetricFunction = Callable[..., Sequence[float]]
"""``function(answers, references, inputs)``, or without the inputs: one score in [0, 1] per example.

All three are lists of strings in the same order; inputs are the texts as the model reads them.
"""

CONTRACT = "It receives lists of answers, references and inputs, and returns one number from 0 to 1 per example."

RANGE = "Return 0 for the worst answer and 1 for the best, such as 0.85 for 85 percent: scores are shown in percent."


@dataclass(frozen=True)
class NamedMetric:
    """A function with the name by which it is found again (:mod:`merganser.streams.metric_source`).

    Attributes:
        name: as records have it.
        function: what is called.
        source: file and version it came from, for the record; empty if unknown.
    """

    name: str
    function: MetricFunction
    source: str = ""

    def __call__(self, *texts: Sequence[str]) -> Sequence[float]:
        return self.function(*texts)


def metric_name(metric: str | MetricFunction) -> str:
    """Return the name of a metric as records have it: of a function ``module:name``."""
    if isinstance(metric, str):
        return metric
    if isinstance(metric, NamedMetric):
        return metric.name
    name = getattr(metric, "__qualname__", None) or type(metric).__qualname__
    return f"{getattr(metric, '__module__', None) or type(metric).__module__}:{name}"


def is_function_name(metric: str | MetricFunction) -> bool:
    """Return whether this is only the recorded name of a function, which must be given again to be called."""
    return isinstance(metric, str) and ":" in metric


def function_scores(
    function: MetricFunction, answers: Sequence[str], references: Sequence[str], inputs: Sequence[str]
) -> NDArray[np.float64]:
    """Call a metric; return one score per example.

    Raises:
        InputError: it failed, or returned anything but one number in [0, 1] per answer.
    """
    name = metric_name(function)
    called = function.function if isinstance(function, NamedMetric) else function
    texts = [list(answers), list(references), list(inputs)][: _positional_arguments(called)]
    try:
        values: Any = called(*texts)
    except MerganserError as error:  # it names its cause and remedy itself
        raise InputError(error.cause, error.remedy) from error
    except Exception as error:
        where, cause = _failing_example(called, texts, type(error)), f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"The metric '{name}' failed{where}: {cause}.", CONTRACT) from error
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"The metric '{name}' returned no numbers: {first_line(error)}.", CONTRACT) from error
    if scores.shape != (len(answers),):
        returned = f"{len(scores)} numbers" if scores.ndim == 1 else "one number" if scores.ndim == 0 else "a table"
        raise InputError(f"The metric '{name}' returned {returned} for {len(answers)} answers.", CONTRACT)
    wrong = np.flatnonzero(~((scores >= 0.0) & (scores <= 1.0)))  # true for NaN as well
    if wrong.size:
        raise InputError(
            f"The metric '{name}' returned {scores[wrong[0]]} for example {wrong[0] + 1}.", f"{CONTRACT} {RANGE}"
        )
    return scores


def _failing_example(function: MetricFunction, texts: Sequence[Sequence[str]], kind: type[Exception]) -> str:
    """Describe the example at which a function fails, sought by halving; empty if none alone makes it fail.

    Args:
        kind: of its error. Another one, such as that of a function that needs two examples, points to none.
    """
    low, high = 0, len(texts[0])

    def fails(first: int, last: int) -> bool:
        try:
            function(*([*part[first:last]] for part in texts))
        except Exception as error:  # a function of the user may raise anything
            return type(error) is kind
        return False

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(low, middle) else (middle, high)
    return f" at example {low + 1} (answer {short(texts[0][low])})" if fails(low, high) else ""


def parameter_problem(function: Any) -> str:
    """Return why an object named in a file cannot be a metric, or an empty string.

    Its parameters must have the names of :data:`MetricFunction`, so that no function which does something else is ever
    called because a file names it.
    """
    if not callable(function) or isinstance(function, type):
        return "it is not a function"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return "its parameters are not known"
    names = [parameter.name for parameter in parameters]
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if names[:2] == ["answers", "references"] and set(required) <= {"answers", "references", "inputs"}:
        return ""
    return f"its parameters are ({', '.join(names)}), and not answers, references and inputs"


def _positional_arguments(function: MetricFunction) -> int:
    """Return 2 for a function that takes answers and references only, else 3."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in callables have none
        return 3
    positional = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if any(parameter.kind == inspect.Parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
        return 3
    # A third parameter with a default is a setting (``lambda answers, references, limit=9: ...``), unless it is named.
    takes_inputs = len(positional) > 2 and (
        positional[2].default is inspect.Parameter.empty or positional[2].name == "inputs"
    )
    return 3 if takes_inputs else 2
