"""Links that lead out of a folder from elsewhere: copies of it must not hold what they lead to."""

from __future__ import annotations

from pathlib import Path


def leads_outside(path: Path, folder: Path) -> bool:
    """Return whether a file of a folder is, or is in, a link to outside the folder.

    Links into the blobs of the hub's cache do not count: the folders of its models are made of them.
    """
    target = path.resolve()
    in_hub_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return not target.is_relative_to(folder.resolve()) and not in_hub_cache
