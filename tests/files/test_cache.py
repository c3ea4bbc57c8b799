"""The cache folder, and folders in it that are filled once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.files.cache import CACHE_VARIABLE, cache_folder, fill_once


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert cache_folder("gguf") == Path("/mine/gguf")
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_folder("gguf") == Path("/some/cache/merganser/gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("gguf") == Path.home() / ".cache" / "merganser" / "gguf"


def test_a_folder_is_filled_by_the_first_who_needs_it(tmp_path: Path) -> None:
    filled = []

    def fill(folder: Path) -> None:
        filled.append(folder)
        (folder / "model").write_text("m")

    threads = [threading.Thread(target=fill_once, args=(tmp_path / "cache" / "a", fill)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filled) == 1
    assert [path.name for path in (tmp_path / "cache" / "a").iterdir()] == ["model"]


def test_a_failure_leaves_no_folder_and_no_lock(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("h")
        raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        fill_once(tmp_path / "a", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    assert fill_once(tmp_path / "a", lambda folder: None).is_dir()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match=r"Cannot create .* Set MERGANSER_CACHE to a folder"):
        fill_once(tmp_path / "file" / "a", lambda folder: None)
