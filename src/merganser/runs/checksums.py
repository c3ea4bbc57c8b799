"""SHA-256 of the files of a run: recorded when they are written, compared when they are read.

The record of a folder (``row.json`` of a row, ``checkpoint.json`` of a checkpoint) has the SHA-256 of every other file
in it. The record itself is *sealed*: its key ``checksum`` has the SHA-256 of the file with this value left empty.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from merganser.files.documents import open_file
from merganser.files.temporary_names import PARTIAL

CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini", ".directory")
"""Files that file managers leave in the folders they show."""

CLUTTER_PREFIXES = ("._", ".nfs", ".fuse_hidden")
"""Beginnings of names that file systems of other kinds and network file systems add."""

CHANGED = "its content has changed since it was written (SHA-256)"
MISSING = "it is missing"

THREADS = 4
"""Files that are hashed at once; one thread hashes about 1.4 GB/s where the processor has instructions for it."""

MANY_BYTES = 1 << 20
"""Below it, threads cost more than they save."""

_KNOWN: dict[tuple[int, ...], str] = {}
"""SHA-256 by what :func:`_state` returns: a file that was hashed by this process is hashed again when it changed."""


def is_clutter(name: str) -> bool:
    """Return whether a file of this name was left by a file manager or a file system, and belongs to nothing."""
    return name in CLUTTER or name.startswith(CLUTTER_PREFIXES)


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256_of(path: Path, again: bool = False) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Args:
        again: read the file even if this process has hashed it before and its size and times are the same.

    Raises:
        OSError: it is missing or cannot be read.
    """
    state = _state(path)
    digest = None if again else _KNOWN.get(state)
    if digest is None:
        with open_file(path) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if _state(path) == state:
            _KNOWN[state] = digest
    return digest


def files_of(folder: Path) -> list[str]:
    """Return the paths of all files in a folder and its folders, relative to it, without clutter and links."""
    paths = []
    for above, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(above, name)
            if not (is_clutter(name) or name.endswith(PARTIAL) or path.is_symlink()):
                paths.append(path.relative_to(folder).as_posix())
    return paths


def checksums(folder: Path, *, without: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder and its folders, by its path in the folder.

    Args:
        without: paths to leave out.
    """
    omitted = set(without)
    names = [name for name in files_of(folder) if name not in omitted]
    paths = [folder / name for name in names]
    if sum(path.stat().st_size for path in paths) < MANY_BYTES:
        return {name: sha256_of(path) for name, path in zip(names, paths, strict=True)}
    with ThreadPoolExecutor(min(THREADS, len(paths))) as pool:
        return dict(zip(names, pool.map(sha256_of, paths), strict=True))


def problem_of(path: Path, expected: str, again: bool = False) -> str:
    """Return what is wrong with a file that should have this SHA-256; empty: nothing.

    Args:
        again: as for :func:`sha256_of`.
    """
    try:
        return "" if sha256_of(path, again) == expected else CHANGED
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def first_problem(folder: Path, expected: Mapping[str, str]) -> tuple[Path, str] | None:
    """Return the first file of a folder that is not as recorded, and what is wrong with it.

    Args:
        expected: SHA-256 by path in the folder.
    """
    for name, checksum in expected.items():
        if problem := problem_of(folder / name, checksum):
            return folder / name, problem
    return None


# Sealed texts --------------------------------------------------------------------------------------------------------

_SEAL = re.compile(rb"<!-- SHA-256 of all before this line: ([0-9a-f]{64}) -->\n\Z")


def sealed_text(content: bytes) -> bytes:
    """Add the SHA-256 of an HTML page as a comment in a last line of its own."""
    content = content.rstrip() + b"\n"
    return content + f"<!-- SHA-256 of all before this line: {hashlib.sha256(content).hexdigest()} -->\n".encode()


def text_problem(content: bytes) -> str:
    """Return what is wrong with a page of :func:`sealed_text`; empty: nothing, or it is not sealed."""
    seal = _SEAL.search(content)
    if seal is None:
        return "" if content.rstrip().endswith(b"</html>") else "its end is missing or has changed"
    return "" if hashlib.sha256(content[: seal.start()]).hexdigest().encode() == seal[1] else CHANGED


# Sealed records ------------------------------------------------------------------------------------------------------


def sealed(value: Mapping[str, Any], indent: int | None = 1) -> bytes:
    """Encode a JSON object with its own SHA-256 under the key ``checksum``, which comes last."""
    content = json.dumps({**value, "checksum": ""}, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
    return _with_checksum(content.encode(), "", hashlib.sha256(content.encode()).hexdigest())


def is_intact(content: bytes, checksum: str) -> bool:
    """Return whether the text of a sealed record is the one that was sealed.

    Args:
        checksum: what the record has under the key ``checksum``.
    """
    try:
        unsealed = _with_checksum(content, checksum, "")
    except ValueError:
        return False
    return hashlib.sha256(unsealed).hexdigest() == checksum


def _with_checksum(content: bytes, old: str, new: str) -> bytes:
    """Replace the value of the key ``checksum``.

    Raises:
        ValueError: it is not there.
    """
    position = content.rindex(f'"checksum": "{old}"'.encode())
    end = position + len(f'"checksum": "{old}"'.encode())
    return content[:position] + f'"checksum": "{new}"'.encode() + content[end:]
