"""Files and folders have the permissions that the umask leaves, whichever library wrote them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merganser.files import atomic
from merganser.files.safetensors_file import create


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=["022", "027", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}


def test_a_folder(umask: int, tmp_path: Path) -> None:
    with atomic.new_folder(tmp_path / "out", shared=True) as folder:
        save_file({"a": torch.zeros(2)}, folder / "of-a-library")
        (private := folder / "private").mkdir(0o700)
        descriptor, name = tempfile.mkstemp(dir=private)
        os.close(descriptor)
        Path(name).rename(private / "temporary")
        create(folder / "merged", [("a", "F32", (1,))], {})
        (folder / "script").touch(0o755)
        (folder / "link").symlink_to(tmp_path)
    place = tmp_path.stat().st_mode
    assert modes(tmp_path / "out") == {
        **dict.fromkeys(("out", "private"), 0o777 & ~umask),
        **dict.fromkeys(("of-a-library", "temporary", "merged", "script"), 0o666 & ~umask),
        "link": place & 0o777,
    }
    assert tmp_path.stat().st_mode == place  # what a link leads to is not touched


def test_files(umask: int, tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "text", "a")
    atomic.write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)})
    with atomic.new_file(tmp_path / "shared", shared=True) as temporary:
        save_file({"a": torch.zeros(2)}, temporary)
    found = modes(tmp_path)
    del found[tmp_path.name]
    assert found == dict.fromkeys(("text", "tensors", "shared"), 0o666 & ~umask)
