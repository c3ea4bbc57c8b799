"""Files that are either there completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from merganser.errors import DiskFullError

PARTIAL = ".partial"
"""Ending of names that are not finished; whoever finds one may delete it."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says when a disk or a quota is full."""


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
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file of a folder to the disk, so that a rename after it cannot expose half-written files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync(path)
    _sync(folder)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: a reader never sees half of it.

    Raises:
        DiskFullError: the disk is full; ``path`` is as it was before.
    """
    temporary = path.with_name(path.name + PARTIAL)
    with full_disk_is_an_error(path):
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """One JSON document; numbers that are not finite are refused."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_json_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    lines = (json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values)
    write_text(path, "".join(line + "\n" for line in lines))


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """A YAML document in the order given."""
    write_text(path, yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=120))


def replace_folder(finished: Path, target: Path) -> None:
    """Put the folder ``finished`` in ``target``'s place; there is a moment without ``target``, never a mixture."""
    old = target.with_name(target.name + ".old" + PARTIAL)
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        os.replace(target, old)
    os.replace(finished, target)
    _sync(target.parent)
    if old.exists():
        shutil.rmtree(old)
