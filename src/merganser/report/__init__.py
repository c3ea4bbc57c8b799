"""Shows a run: one self-contained HTML page, figures for papers, tables as CSV."""

from __future__ import annotations

from merganser.report.figures import draw_figures, write_figures
from merganser.report.page import write_report
from merganser.report.tables import write_tables

__all__ = ["draw_figures", "write_figures", "write_report", "write_tables"]
