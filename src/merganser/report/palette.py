"""Colours and markers of the figures, and the CSS variables that replace the colours in the page."""

from __future__ import annotations

INK, PAPER, RULE = "#000000", "#ffffff", "#cccccc"
BAND = "#dcebf5"
"""Of changes within the noise."""

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#666666"
"""Okabe and Ito's palette, distinguishable with any common colour blindness; each use has a marker or dash as well."""

CAUSE_STYLE = {"due": ("o", BLUE), "early": ("^", VERMILION), "forced": ("D", ORANGE), "end": ("s", GREEN)}
"""Marker and colour of each cause of a merge."""

CSS_VARIABLES = {INK: "--ink", PAPER: "--paper", RULE: "--rule", BAND: "--band", BLUE: "--accent", GREY: "--quiet"}
"""Colour of a figure -> variable of ``report.css`` with that role, which differs between light, dark and print."""

BASELINE_STYLES = (((0, (3, 2)), "s"), ((0, (1, 1.5)), "^"), ((0, (6, 2)), "D"), ((0, (3, 1, 1, 1)), "v"))
"""Dash and marker of each baseline; all are grey."""
