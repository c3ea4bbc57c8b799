"""A function as a task's metric: how it is called, checked and named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merganser.errors import InputError, first_line

MetricFunction = Callable[..., Sequence[float]]
"""``function(answers, references, inputs)``, or without the inputs: one score in [0, 1] per example.

All three are lists of strings in the same order; inputs are the texts as the model reads them.
"""

CONTRACT = "It receives lists of answers, references and inputs, and returns one number from 0 to 1 per example."


def metric_name(metric: str | MetricFunction) -> str:
    """Return the name of a metric as records have it: of a function ``module:name``."""
    if isinstance(metric, str):
        return metric
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
    arguments: list[Any] = [list(answers), list(references), list(inputs)]
    try:
        values = function(*arguments[: _positional_arguments(function)])
    except Exception as error:
        raise InputError(
            f"The metric '{name}' failed: {type(error).__name__}: {first_line(error)}.", CONTRACT
        ) from error
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"The metric '{name}' returned no numbers: {first_line(error)}.", CONTRACT) from error
    if scores.shape != (len(answers),):
        returned = f"{len(scores)} numbers" if scores.ndim == 1 else "one number" if scores.ndim == 0 else "a table"
        raise InputError(f"The metric '{name}' returned {returned} for {len(answers)} answers.", CONTRACT)
    wrong = np.flatnonzero(~((scores >= 0.0) & (scores <= 1.0)))  # true for NaN as well
    if wrong.size:
        raise InputError(f"The metric '{name}' returned {scores[wrong[0]]} for example {wrong[0] + 1}.", CONTRACT)
    return scores


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
