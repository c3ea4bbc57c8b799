"""SHA-256 of large files and of the tensors in them: computed in parallel, and remembered in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from merganser.errors import MerganserError
from merganser.files.atomic import write_json
from merganser.files.cache import cache_folder, make_cache, remembers
from merganser.files.documents import open_file
from merganser.files.safetensors_file import read_header

PIECE = 1 << 24
"""Bytes that one thread hashes at a time."""

SETTLED = 2.0
"""Seconds since the last change after which the times of a file tell the next change: those of some file systems are
that coarse."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""

    def compute() -> dict[str, str]:
        with open_file(path) as stream:
            return {"": hashlib.file_digest(stream, "sha256").hexdigest()}

    return _remembered(path, "file", compute)[""]


def tensor_digests(path: Path) -> dict[str, str]:
    """Return, for each tensor of a safetensors file, the digest of its type, shape and all its bytes.

    A digest does not depend on the other tensors: the same model in other shards has the same ones.

    Raises:
        InputError: the file is not a whole safetensors file.
    """
    return _remembered(path, "tensors", lambda: _hash_tensors(path))


def _hash_tensors(path: Path) -> dict[str, str]:
    tensors = read_header(path)[0]
    pieces = [
        (tensor.offset + start, min(PIECE, tensor.nbytes - start))
        for tensor in tensors
        for start in range(0, tensor.nbytes, PIECE)
    ]
    with open_file(path) as stream, ThreadPoolExecutor(os.cpu_count()) as pool:
        descriptor = stream.fileno()
        # hashlib releases the interpreter's lock, and pread has no position that threads would share.
        digests = pool.map(lambda piece: hashlib.sha256(os.pread(descriptor, piece[1], piece[0])).digest(), pieces)
        by_name = {}
        for tensor in tensors:
            digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
            for _ in range(0, tensor.nbytes, PIECE):
                digest.update(next(digests))
            by_name[tensor.name] = digest.hexdigest()
    return by_name


def combine(digests: Iterable[tuple[str, str]]) -> str:
    """Return one digest of named digests; their order does not matter."""
    return hashlib.sha256(json.dumps(sorted(digests)).encode()).hexdigest()


def _remembered(path: Path, kind: str, compute: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return what was computed of a file the last time, if its path, size and times are the same; else compute it.

    A file that changed in the last :data:`SETTLED` seconds, or while it was read, is not remembered: its next change
    might leave the times as they are.
    """
    state = _state(path)
    memory = cache_folder("digests") / f"{kind}-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    known = _read(memory)
    if known is not None and known.get("state") == state:
        return dict(known["digests"])
    started = time.time()
    digests = compute()
    if remembers() and _state(path) == state and started - state[1] / 1e9 > SETTLED:
        try:
            make_cache(memory.parent)
            write_json(memory, {"state": state, "digests": digests}, shared=True)
        except (MerganserError, OSError):
            pass  # a cache that cannot be written costs time only: the next call computes again
    return digests


def _state(path: Path) -> list[int]:
    """Return what changes when a file does: size, times of the last change of content and of anything, inode."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(memory: Path) -> dict[str, Any] | None:
    """Return what was remembered; ``None`` if there is nothing, or nothing whole."""
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(content, dict) and isinstance(content.get("digests"), dict)
    return content if whole else None
