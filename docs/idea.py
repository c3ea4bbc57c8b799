"""Draws docs/idea.svg: weights on their way through three tasks, with merges.

python docs/idea.py
"""

from __future__ import annotations

import math
from pathlib import Path

STYLE = """
  .text { font: 19px system-ui, sans-serif; fill: #334155 } .small { font-size: 17px }
  .region { fill-opacity: .16; stroke-opacity: .55; stroke-width: 1.5 }
  .path { fill: none; stroke-width: 2.5; stroke-linecap: round } .plain { stroke-dasharray: 2 7 }
  .merge { fill: #ffffff; stroke-width: 2.5 }
  .ours { stroke: #0f766e } .lost { stroke: #94a3b8 } .ours-text { fill: #0f766e } .lost-text { fill: #64748b }
  @media (prefers-color-scheme: dark) {
    .text { fill: #cbd5e1 } .merge { fill: #0f172a } .ours { stroke: #2dd4bf } .ours-text { fill: #2dd4bf }
    .lost { stroke: #64748b } .lost-text { fill: #94a3b8 }
  }
"""

REGIONS = [  # centre, radii, rotation, colour, name and its place
    ((300, 185), (190, 92), -8, "#0891b2", "good at task 1", (112, 106)),
    ((470, 205), (185, 90), 14, "#d97706", "good at task 2", (645, 128)),
    ((410, 285), (215, 84), -4, "#7c3aed", "good at task 3", (190, 374)),
]
Point = tuple[float, float]
# Each leg of training, and the point between its ends that the merge goes back to.
START: Point = (70, 300)
LEGS: list[tuple[Point, Point]] = [
    ((200, 200), (200, 200)),
    ((548, 172), (398, 178)),
    ((440, 338), (404, 230)),
]
PLAIN: list[Point] = [(200, 200), (604, 236), (560, 326)]


def curve(start: Point, end: Point, bend: float) -> str:
    """Return an SVG path from start to end, bent sideways by a part of its length."""
    (x0, y0), (x1, y1) = start, end
    x, y = (x0 + x1) / 2 - bend * (y1 - y0), (y0 + y1) / 2 + bend * (x1 - x0)
    return f"M{x0:.0f} {y0:.0f} Q{x:.0f} {y:.0f} {x1:.0f} {y1:.0f}"


def head(start: Point, end: Point, name: str) -> str:
    """Return an arrow head at ``end``."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    wings = [(end[0] - 9 * math.cos(angle + turn), end[1] - 9 * math.sin(angle + turn)) for turn in (-0.5, 0.5)]
    (ax, ay), (bx, by) = wings
    return f'<path class="path {name}" d="M{ax:.0f} {ay:.0f} L{end[0]:.0f} {end[1]:.0f} L{bx:.0f} {by:.0f}"/>'


def drawing() -> str:
    """Return the picture."""
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 400" role="img" aria-labelledby="title">']
    parts += ['<title id="title">Weights move from task to task; merges keep them where all tasks are good</title>']
    parts += [f"<style>{STYLE}</style>"]
    for (x, y), (rx, ry), turn, colour, name, (tx, ty) in REGIONS:
        parts.append(
            f'<ellipse class="region" cx="{x}" cy="{y}" rx="{rx}" ry="{ry}" transform="rotate({turn} {x} {y})" '
            f'fill="{colour}" stroke="{colour}"/>'
        )
        parts.append(f'<text class="text small" x="{tx}" y="{ty}" text-anchor="middle">{name}</text>')
    here = PLAIN[0]
    for goal in PLAIN[1:]:
        parts += [f'<path class="path plain lost" d="{curve(here, goal, 0.1)}"/>', head(here, goal, "lost")]
        here = goal
    here = START
    for number, (trained, merged) in enumerate(LEGS):
        parts += [f'<path class="path ours" d="{curve(here, trained, -0.1)}"/>', head(here, trained, "ours")]
        if number:
            parts.append(f'<path class="path ours plain" d="{curve(trained, merged, 0)}"/>')
            parts.append(f'<circle class="merge ours" cx="{merged[0]}" cy="{merged[1]}" r="6"/>')
        here = merged
    x, y = START
    parts.append(f'<circle class="merge ours" cx="{x}" cy="{y}" r="6"/>')
    parts.append(f'<text class="text small" x="{x}" y="{y + 30}" text-anchor="middle">pretrained</text>')
    parts.append('<text class="text ours-text" x="20" y="30">with merges: stays where all tasks are good</text>')
    parts.append('<text class="text lost-text" x="20" y="56">plain fine-tuning: leaves the earlier tasks</text>')
    parts.append('<circle class="merge ours" cx="668" cy="330" r="6"/>')
    parts.append('<text class="text small" x="682" y="336">a merge</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("idea.svg").write_text(drawing(), encoding="utf-8")
