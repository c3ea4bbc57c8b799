"""``run.yaml``: what a run was started with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from merganser.errors import InputError
from merganser.files.documents import Malformed, parse_yaml
from merganser.runs.checksums import CHANGED, sha256_of
from merganser.runs.links import TASKS
from merganser.runs.reading import damaged, problem, read_text
from merganser.runs.record import FORMAT, RunInfo
from merganser.runs.rows import Row, row_folders

RUN = "run.yaml"


def read_run_file(run: Path) -> RunInfo:
    """Read the ``run.yaml`` of a run.

    Raises:
        InputError: there is no run, it is damaged, or another version wrote it.
    """
    file = run / RUN
    if not file.is_file():
        if (run / TASKS).is_dir() and row_folders(run / TASKS):
            raise InputError(f"'{run}' is damaged: it has tasks and no run.yaml.", "Restore run.yaml from a copy.")
        raise InputError(f"There is no run in '{run}' (no run.yaml).", "Start one with `merganser run`.")
    try:
        value = parse_yaml(read_text(file))
    except Malformed as error:
        raise damaged(file, f"not YAML: {error}") from error
    if not isinstance(value, dict):
        raise damaged(file, "no mapping in it")
    written_format = value.get("format")
    if isinstance(written_format, int) and written_format < FORMAT:
        raise InputError(
            f"The run '{run}' was written by an older version (format {written_format}; this version reads {FORMAT}).",
            "Learn its tasks again in a new folder, or open it with the version that run.yaml names.",
        )
    if isinstance(written_format, int) and written_format > FORMAT:
        raise InputError(
            f"The run '{run}' was written by a newer version (format {written_format}; this version reads {FORMAT}).",
            "Upgrade: pip install --upgrade merganser.",
        )
    try:
        info = RunInfo.model_validate(value)
    except ValidationError as error:
        raise damaged(file, problem(error)) from error
    if not (run / TASKS).is_dir():
        raise damaged(run / TASKS, "it is missing")
    return info


def check_run_file(run: Path, rows: Sequence[Row]) -> None:
    """Compare ``run.yaml`` with the checksum in the last of these rows.

    Raises:
        InputError: it has changed.
    """
    recorded = rows[-1].file.run_sha256 if rows else ""
    if recorded and sha256_of(run / RUN) != recorded:
        raise damaged(run / RUN, CHANGED)
