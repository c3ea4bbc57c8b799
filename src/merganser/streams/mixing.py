"""How many training rows come from the data that are mixed into a task, and which."""

from __future__ import annotations

import math
from fractions import Fraction


def mixed_before(position: int, share: float) -> int:
    """Return how many of the first ``position`` training rows come from other data, of which there is a share.

    Rounded over all rows so far: any run of rows holds its share to within one row.
    """
    return math.floor(position * Fraction(repr(share)) + Fraction(1, 2))


def rows_with_mix(task_rows: int, share: float) -> int:
    """Return the training rows of one pass: each of a task's ``task_rows`` rows comes, beside a share of others."""
    return math.ceil(task_rows / (1 - Fraction(repr(share))))
