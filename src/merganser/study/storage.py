"""Copy cells to and from a place that fsspec supports, for nodes that share no file system.

The record of a row is copied after its other files, and a row without its record is not fetched: whatever ends a copy,
what is fetched is complete.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from merganser.events import Event, Listener, RowDone, StepDone
from merganser.files.atomic import full_disk_is_an_error, make_folder, write_bytes
from merganser.files.temporary_names import PARTIAL
from merganser.runs.rows import RECORD
from merganser.study.cells import Cell, Study
from merganser.study.folder import StudyFolder

LAST = (RECORD, "checkpoint.json")
"""Records of folders: copied after the other files of these."""


class Storage:
    """A place of copies.

    Args:
        url: such as ``s3://bucket/path``; a path without a protocol is one on this machine.
    """

    EVERY = 60.0
    """Seconds between two copies of checkpoints."""

    def __init__(self, url: str) -> None:
        self.files, self.root = fsspec.core.url_to_fs(url)
        self._sent: dict[Path, tuple[int, int]] = {}
        self._made: set[str] = set()

    def probe(self) -> None:
        """Write and delete a small file.

        Raises:
            OSError: it cannot be written.
        """
        self.files.makedirs(self.root, exist_ok=True)
        probe = f"{self.root}/.probe"
        self.files.pipe_file(probe, b"")
        self.files.rm_file(probe)

    @contextlib.contextmanager
    def kept(self, folder: StudyFolder, cell: Cell) -> Iterator[Listener]:
        """Fetch a cell and keep its copy up to date: yield a listener that copies after rows, and now and then."""
        run, name = folder.run(cell), f"cells/{cell.run}"
        self.fetch(name, run)
        last = time.monotonic()

        def copy(event: Event) -> None:
            nonlocal last
            now = time.monotonic()
            if isinstance(event, RowDone) or (isinstance(event, StepDone) and now - last >= self.EVERY):
                self.send(run, name)
                last = now

        try:
            yield copy
        finally:
            if run.is_dir():
                self.send(run, name)

    def store_records(self, study: Study, folder: StudyFolder, cell: Cell) -> None:
        """Copy the records of a finished cell."""
        for sibling in study.of_run(cell.run):
            self._write(f"records/{sibling.name}.json", folder.record_file(sibling).read_bytes())

    def _write(self, name: str, content: bytes) -> None:
        above = f"{self.root}/{name}".rpartition("/")[0]
        if above not in self._made:
            self.files.makedirs(above, exist_ok=True)
            self._made.add(above)
        with full_disk_is_an_error(Path(self.root, name)):
            self.files.pipe_file(f"{self.root}/{name}", content)

    def send(self, folder: Path, name: str) -> None:
        """Copy the files of a folder that are new or have changed; delete copies of those that are gone."""
        files = sorted(
            (path for path in folder.rglob("*") if path.is_file() and not _is_passing(path.relative_to(folder))),
            key=lambda path: path.name in LAST,
        )
        for path in files:
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._sent.get(path) != state:
                self._write(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
                self._sent[path] = state
        for path in [path for path in self._sent if path.is_relative_to(folder) and not path.exists()]:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(f"{self.root}/{name}/{path.relative_to(folder).as_posix()}")
            del self._sent[path]

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a folder here, without rows and checkpoints that are not complete; nothing where there is none.

        Raises:
            InputError: the folder cannot be written.
            RunError: the disk is full; a file that was there is as it was.
        """
        base = f"{self.root}/{name}"
        self.files.invalidate_cache()  # of listings: other nodes write there too
        copies: list[str] = self.files.find(base) if self.files.exists(base) else []
        names = [path[path.index(base.strip("/")) + len(base.strip("/")) + 1 :] for path in copies]
        whole = {str(Path(relative).parent) for relative in names if Path(relative).name in LAST}
        for path, relative in zip(copies, names, strict=True):
            part = _row_of(relative)
            if part is not None and part not in whole:
                continue
            target = folder / relative
            make_folder(target.parent)
            content: Any = self.files.cat_file(path)
            write_bytes(target, content)
            status = target.stat()
            self._sent[target] = (status.st_size, status.st_mtime_ns)


def _row_of(name: str) -> str | None:
    """Return the folder of a row or a checkpoint that a file is in; ``None``: it is in none."""
    parts = Path(name).parts
    return "/".join(parts[:2]) if len(parts) > 2 and parts[0] in ("tasks", "checkpoint") else None


def _is_passing(path: Path) -> bool:
    return path.name == ".lock" or any(PARTIAL in part or part.endswith(".lock") for part in path.parts)
