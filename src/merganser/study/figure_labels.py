"""Where the names of points stand in a chart: beside them, and not on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser.report.formatting import literal
from merganser.report.palette import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 9
"""Of the letters, in points."""

POINT = 5.0
"""From the middle of a point to its edge, with a little space."""

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in points."""


def label_points(axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Write a label beside each point: above right, or where that is taken, at the next free of a few other places.

    Args:
        axes: with its limits and scales.
        points: in data coordinates.
        labels: one each.
    """
    if not points:
        return
    axes.autoscale_view()
    pixels = axes.transData.transform(points) * 72 / axes.figure.dpi
    edge = axes.bbox.x0 * 72 / axes.figure.dpi
    taken: list[Box] = [(x - POINT, y - POINT, x + POINT, y + POINT) for x, y in pixels]
    for (x, y), point, label in zip(pixels, points, labels, strict=True):
        width = 0.6 * SIZE * len(label)
        places = _places(width)
        boxes = [(x + left, y + low, x + left + width, y + low + SIZE) for left, low in places]
        free = next((place for place, box in enumerate(boxes) if _is_free(box, taken, edge)), 0)
        taken.append(boxes[free])
        axes.annotate(
            literal(label), point, places[free], textcoords="offset points", fontsize=SIZE, color=INK, zorder=4
        )


def _places(width: float) -> list[tuple[float, float]]:
    """Return where a label may begin, as seen from its point: near it, then further above and below."""
    right, left, above, below = 5.0, -5.0 - width, 4.0, -4.0 - SIZE
    lines = [place + sign * step * (SIZE + 1) for step in range(4) for place, sign in ((above, 1), (below, -1))]
    return [(x, y) for y in lines for x in (right, left)]


def _is_free(box: Box, taken: Sequence[Box], edge: float) -> bool:
    """Return whether a box lies on no other one, nor on what is left of the axes."""
    left, low, right, high = box
    return left >= edge and not any(left < r and x < right and low < h and y < high for x, y, r, h in taken)
