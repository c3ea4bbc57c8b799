"""Permissions of what was written: those of any new file, also where a library gave its file others.

Libraries that write under a temporary name of their own, such as safetensors, leave the permissions of a private file;
a server of another user could not read it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

PERMISSIONS = 0o777
READ_WRITE = 0o666


def create_file(path: Path) -> int:
    """Create an empty file; return its permissions: what the umask and the folder's defaults leave of a new file.

    Raises:
        FileExistsError: the name is taken.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READ_WRITE)
    try:
        return os.fstat(descriptor).st_mode & PERMISSIONS
    finally:
        os.close(descriptor)


def give_permissions(path: Path, mode: int) -> None:
    """Give a file these permissions; give everything in a folder those that the folder itself was created with.

    Files get only those to read and to write. Further bits stay, such as the group that a folder passes on.
    """
    if not path.is_dir():
        _set(path, mode)
        return
    for inside in path.rglob("*"):
        if not inside.is_symlink():
            _set(inside, path.stat().st_mode & PERMISSIONS)


def _set(path: Path, mode: int) -> None:
    current = path.stat().st_mode
    wanted = mode if stat.S_ISDIR(current) else mode & READ_WRITE
    if current & PERMISSIONS != wanted:
        path.chmod(stat.S_IMODE(current) & ~PERMISSIONS | wanted)
