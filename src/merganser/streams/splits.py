"""Class-incremental streams: which classes come in which task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from merganser.errors import InputError, first_repeated, nearest
from merganser.files.documents import Malformed, read_text
from merganser.streams.formats import missing_file
from merganser.streams.options import SplitOptions
from merganser.streams.sampling import generator as make_generator
from merganser.streams.sampling import pick, positions_by_output
from merganser.streams.task import Example


def class_order(options: SplitOptions, labels: Sequence[str], base: Path) -> list[str]:
    """Return the classes in order of learning, without those excluded.

    Args:
        options: ``order`` (a list, or a file with one class per line, relative to ``base``), or ``order_seed``, or
            neither: the order of ``options.classes``, else of ``labels``.
        labels: all classes of the data.

    Raises:
        InputError: an order that misses a class or names one that does not exist or twice; a missing file;
            nothing left to learn.
    """
    _require(options.exclude, labels, "split.exclude")
    excluded = set(options.exclude)
    kept = [label for label in _natural(options, labels) if label not in excluded]
    if not kept:
        raise InputError("split.exclude leaves no class to learn.", "Exclude fewer.")
    if options.order is None:
        if options.order_seed is None:
            return kept
        return [kept[i] for i in make_generator(options.order_seed, "class order").permutation(len(kept))]
    if isinstance(options.order, str):
        file = base / options.order
        try:
            lines = read_text(file).splitlines()
        except FileNotFoundError as error:
            raise missing_file(file, options.order) from error
        except (OSError, Malformed) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{options.order}: cannot be read: {reason}.", "Give one class per line, UTF-8."
            ) from error
        order = [line.strip() for line in lines if line.strip()]
    else:
        order = list(options.order)
    _require(order, labels, "split.order")
    order = [label for label in order if label not in excluded]
    if (twice := first_repeated(order)) is not None:
        raise InputError(f"split.order: '{twice}' occurs twice.", "Name every class once.")
    ordered = set(order)
    if missing := [label for label in kept if label not in ordered]:
        raise InputError(
            f"split.order lacks {len(missing)} of the classes, first '{missing[0]}'.", "Add them, or exclude them."
        )
    return order


def _natural(options: SplitOptions, labels: Sequence[str]) -> list[str]:
    """Order the classes by their numbers in IDX files, if there are any."""
    if options.classes is None:
        return list(labels)
    known = set(labels)
    return [label for label in options.classes if label in known]


def _require(names: Sequence[str], labels: Sequence[str], key: str) -> None:
    known = set(labels)
    for name in names:
        if name not in known:
            shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
            raise InputError(f"{key}: there is no class '{name}' ({shown}).", nearest(name, labels) or "Correct it.")


def groups(order: Sequence[str], options: SplitOptions) -> list[tuple[str, ...]]:
    """Divide the classes among tasks.

    Raises:
        InputError: more tasks than classes, or neither their number nor their size is given.
    """
    if options.classes_per_task is not None:
        size = options.classes_per_task
        return [tuple(order[i : i + size]) for i in range(0, len(order), size)]
    if options.tasks is None:
        raise InputError("The split has neither 'tasks' nor 'classes_per_task'.", "Give one of them.")
    if options.tasks > len(order):
        raise InputError(f"split.tasks: {options.tasks} tasks for {len(order)} classes.", "Ask for fewer tasks.")
    size, remainder = divmod(len(order), options.tasks)
    sizes = [size + (number < remainder) for number in range(options.tasks)]
    ends = np.cumsum(sizes)
    return [tuple(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def hold_out(
    examples: Sequence[Example], share: float, rng: np.random.Generator
) -> tuple[list[Example], list[Example]]:
    """Divide examples into those that stay and a held-out share of each class, both in file order.

    Of n examples of a class floor(share * n) are held out, at least one where there are two.
    """
    held: set[int] = set()
    for group in positions_by_output(examples).values():
        number = max(int(share * len(group) + 1e-9), 1) if len(group) > 1 else 0
        held.update(pick(group, number, rng))
    return [e for i, e in enumerate(examples) if i not in held], [e for i, e in enumerate(examples) if i in held]
