"""Shows a run: one self-contained HTML page, figures for papers, tables as CSV."""

from __future__ import annotations

from merganser.report.figures import write_figures
from merganser.report.page import write_report
from merganser.report.tables import write_tables

__all__ = ["write_figures", "write_report", "write_tables"]
