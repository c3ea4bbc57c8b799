"""Write files and folders that are either complete or absent.

Content is written under a temporary name beside its target, flushed to the disk, and renamed. Everything that a run, a
cache, an export or a merge leaves on disk goes through this module, which alone renames (:func:`rename`) and flushes
(:func:`flush`).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from merganser.errors import DiskFullError, InputError
from merganser.files.documents import yaml_document
from merganser.files.permissions import create_file, give_permissions
from merganser.files.target_lock import TargetTaken, target_lock
from merganser.files.temporary_names import PARTIAL, path_of_old, temporary_path, unique_temporary_path, writer_of

if TYPE_CHECKING:
    from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of a full quota."""

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
"""Error numbers of renaming a folder to a name that a file, a link or a folder with content has."""

_IN_USE: set[Path] = set()
"""Temporary names of this process that are being written."""


@contextlib.contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """Turn "no space left" inside the block, from Python or a library's own writer, into a :class:`DiskFullError`."""
    try:
        yield
    except Exception as error:
        # safetensors reports the operating system's error only as text.
        if getattr(error, "errno", None) in FULL or "No space left" in str(error):
            raise DiskFullError(
                f"The disk is full while writing {path.name} in '{path.parent}'.",
                "Free some space and start again: what was complete before is untouched.",
            ) from error
        if getattr(error, "errno", None) == errno.EFBIG or os.strerror(errno.EFBIG) in str(error):
            raise DiskFullError(
                f"The file {path.name} in '{path.parent}' would be larger than a file may be.",
                "Raise the limit on the size of files (ulimit -f), or write to another file system.",
            ) from error
        raise


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flush every file and folder of a folder, innermost first, and the folder itself."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            flush(path)
    flush(folder)


def write(path: Path, content: bytes) -> None:
    """Write a file in place: one with a temporary name, or in a folder that has one. A link is not followed."""
    with full_disk_is_an_error(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder that was flushed, and flush the new name; a file at ``target`` is replaced."""
    os.replace(source, target)
    flush(target.parent)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; a folder is renamed first, so that a part of it never has its name."""
    if path.is_symlink() or not path.is_dir():
        if os.path.lexists(path):
            path.unlink(missing_ok=True)
        return
    if not path.name.endswith(PARTIAL):
        renamed = temporary_path(path)
        remove(renamed)
        rename(path, renamed)
        path = renamed
    shutil.rmtree(path)


@contextlib.contextmanager
def _creating(shown: Path, remedy: str) -> Iterator[None]:
    """Turn the refusal of a folder into an :class:`InputError` that names ``shown``."""
    with full_disk_is_an_error(shown):
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise
            raise InputError(f"Cannot create '{shown}': {error.strerror}.", remedy) from error


def make_folder(folder: Path, remedy: str = "Choose a folder that can be written.", shown: Path | None = None) -> Path:
    """Create a folder and its parents where absent, and flush their names.

    Args:
        shown: the folder to name in an error, if it is another one.

    Raises:
        InputError: it or one of its parents is a file, or may not be created.
        RunError: the disk is full.
    """
    with _creating(shown or folder, remedy):
        absent = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        folder.mkdir(parents=True, exist_ok=True)
        for path in absent:
            if not path.name.endswith(PARTIAL):  # the name of a temporary folder need not survive
                flush(path.parent)
    return folder


# Sweeping ------------------------------------------------------------------------------------------------------------


def sweep(target: Path) -> None:
    """Remove what writers of ``target`` on this host left under unique temporary names when they were killed.

    A complete folder that was moved aside gets its name back if nothing took its place.
    """
    for path in sorted(target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}")):
        writer = writer_of(path)
        if writer is None or writer.target != target.name or not writer.is_here or _is_being_written(path):
            continue
        if writer.old and not target.exists():
            rename(path, target)
        else:
            remove(path)


def sweep_all(targets: Iterable[Path]) -> None:
    """Remove what writers of these targets left under any temporary name, except those that are being written."""
    for target in targets:
        temporary = temporary_path(target)
        remove(temporary)
        remove(path_of_old(temporary))
        sweep(target)


def _is_being_written(path: Path) -> bool:
    """Return whether a process of this host that is alive chose this unique temporary name."""
    writer = writer_of(path)
    if writer is None or not writer.is_here:
        return False
    if writer.process == os.getpid():
        return path in _IN_USE  # else left by an earlier process that had the same number
    try:
        os.kill(writer.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it exists, and is another user's
    return True


# Writing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rename:
    source: Path
    target: Path
    is_folder: bool
    replace: bool = True
    mode: int = 0


class StagedChanges:
    """New files, new folders and removals that are prepared completely before the first of them takes effect.

    In the ``with`` block :meth:`file` and :meth:`folder` return temporary paths to write to. At its end everything is
    flushed to the disk and then renamed, in the order of the calls. An error before the first rename leaves every
    target as it was.

    Args:
        shared: other processes may write the same targets at the same time: temporary names are unique, what killed
            writers left is removed, and a folder has one writer at a time.

    Raises:
        InputError: a folder cannot be created, or another process is writing it.
        DiskFullError: the disk is full; no target has changed.
    """

    def __init__(self, shared: bool = False) -> None:
        self._shared = shared
        self._renames: list[_Rename] = []
        self._temporary: list[Path] = []
        self._removed: list[Path] = []
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> StagedChanges:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
                for change in self._renames:
                    self._put_in_place(change)
                for path in self._removed:
                    remove(path)
        finally:
            with self._locks:
                for path in self._temporary:
                    _IN_USE.difference_update((path, path_of_old(path)))
                    remove(path)

    def file(self, target: Path) -> Path:
        """Return the path of an empty temporary file to write to, which replaces the one at ``target``."""
        return self._new(target, is_folder=False)

    def folder(self, target: Path, replace: bool = True) -> Path:
        """Create an empty temporary folder, which replaces the one at ``target``.

        Args:
            replace: False: what has appeared at ``target`` in the meantime stays, and is a :class:`TargetTaken`.
        """
        make_folder(target.parent, shown=target)
        if self._shared:
            with _creating(target, "Choose a folder that can be written."):
                self._locks.enter_context(target_lock(target))
        return make_folder(self._new(target, is_folder=True, replace=replace), shown=target)

    def write(self, target: Path, content: bytes) -> None:
        """Write a file that replaces the one at ``target``."""
        with full_disk_is_an_error(target):
            write(self.file(target), content)

    def rename_folder(self, source: Path, target: Path) -> None:
        """Give a folder that was written before, under a name with :data:`PARTIAL`, its final name."""
        self._renames.append(_Rename(source, target, is_folder=True))

    def remove_folder(self, target: Path) -> None:
        """Remove a folder: it is renamed in its turn, and deleted when everything else is in place."""
        self.rename_folder(target, temporary_path(target))
        self._removed.append(temporary_path(target))

    def _new(self, target: Path, is_folder: bool, replace: bool = True) -> Path:
        if self._shared:
            sweep(target)
        temporary = unique_temporary_path(target) if self._shared else temporary_path(target)
        remove(temporary)  # a link of that name would be followed
        _IN_USE.update((temporary, path_of_old(temporary)))
        self._temporary.append(temporary)
        mode = 0 if is_folder else create_file(temporary)
        self._renames.append(_Rename(temporary, target, is_folder, replace, mode))
        return temporary

    def _flush(self) -> None:
        for change in self._renames:
            with full_disk_is_an_error(change.target):
                if change.target not in self._removed:
                    give_permissions(change.source, change.mode)
                    flush_tree(change.source) if change.is_folder else flush(change.source)

    def _put_in_place(self, change: _Rename) -> None:
        """Rename the complete content; a folder that is there is moved aside first and removed last.

        Of a link to a folder only the link is removed.
        """
        old = None
        if change.replace and change.is_folder and (change.target.is_symlink() or change.target.is_dir()):
            old = path_of_old(change.source)
            remove(old)
            rename(change.target, old)
        try:
            rename(change.source, change.target)
        except BaseException as error:
            if old is not None and not change.target.exists():
                rename(old, change.target)
            if not change.replace and getattr(error, "errno", None) in TAKEN:
                raise TargetTaken(f"'{change.target}' has appeared in the meantime.", "Choose a new folder.") from error
            raise
        if old is not None and old.is_symlink():
            old.unlink()
        elif old is not None:
            # Whoever writes a shared target next removes what cannot be removed now.
            shutil.rmtree(old, ignore_errors=self._shared)


@contextlib.contextmanager
def new_file(target: Path, shared: bool = False) -> Iterator[Path]:
    """Provide a temporary path to write a file to, which is flushed and renamed to ``target`` at the end of the block.

    Args:
        shared: as for :class:`StagedChanges`.

    Raises:
        DiskFullError: the disk is full; ``target`` is as it was before.
    """
    with full_disk_is_an_error(target), StagedChanges(shared) as changes:
        yield changes.file(target)


@contextlib.contextmanager
def new_folder(target: Path, shared: bool = False, replace: bool = True) -> Iterator[Path]:
    """Provide an empty temporary folder, which is flushed and renamed to ``target`` at the end of the block.

    Args:
        shared: as for :class:`StagedChanges`.
        replace: as for :meth:`StagedChanges.folder`.

    Raises:
        InputError: the folder cannot be created.
        DiskFullError: the disk is full; ``target`` is as it was before.
    """
    with full_disk_is_an_error(target), StagedChanges(shared) as changes:
        yield changes.folder(target, replace)


def write_bytes(path: Path, content: bytes, shared: bool = False) -> None:
    """Write a file under a temporary name and rename it: a reader never sees half of it.

    Args:
        shared: as for :class:`StagedChanges`.

    Raises:
        DiskFullError: the disk is full; ``path`` is as it was before.
    """
    with full_disk_is_an_error(path), StagedChanges(shared) as changes:
        changes.write(path, content)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, as :func:`write_bytes`."""
    write_bytes(path, text.encode())


def json_bytes(value: Any) -> bytes:
    """Encode one JSON document; numbers that are not finite are refused."""
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def json_lines_bytes(values: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode one JSON object per line; numbers that are not finite are refused."""
    lines = (json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values)
    return "".join(line + "\n" for line in lines).encode()


def write_json(path: Path, value: Any, shared: bool = False) -> None:
    """Write one JSON document, as :func:`write_bytes`; numbers that are not finite are refused."""
    write_bytes(path, json_bytes(value), shared)


def write_json_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, as :func:`write_bytes`; numbers that are not finite are refused."""
    write_bytes(path, json_lines_bytes(values))


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a YAML document, as :func:`write_text`, with keys in the order given."""
    write_text(path, yaml_document(value, width=120))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; no two of the tensors share memory.

    Raises:
        DiskFullError: the disk is full; ``path`` is as it was before.
    """
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with new_file(path) as temporary:
        save_file(whole, temporary, metadata=None if metadata is None else dict(metadata))
