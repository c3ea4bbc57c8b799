"""The run directory: atomic files, a lock, the ledger, and reading it all back."""

from merganser.runs.directory import RunDirectory, read_run
from merganser.runs.record import RunRecord

__all__ = ["RunDirectory", "RunRecord", "read_run"]
