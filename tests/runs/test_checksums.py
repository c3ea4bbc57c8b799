"""SHA-256 of files, and records that hold their own."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.metrics import Score
from merganser.runs import checksums
from merganser.runs.references import read_references, write_references

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of ``abc``: FIPS 180-2, appendix B.1."""


def test_every_file_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("a", "b/c/d", "row.json", ".DS_Store", "b/._d", "b/e.partial"):
        (tmp_path / name).write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    expected = {"a": ABC, "b/c/d": ABC}
    assert checksums.checksums(tmp_path, without=["row.json"]) == expected
    monkeypatch.setattr(checksums, "MANY_BYTES", 1)
    checksums._KNOWN.clear()
    assert checksums.checksums(tmp_path, without=["row.json"]) == expected


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abd")
    checksums.sha256_of(path)
    status = path.stat()
    path.write_bytes(b"abc")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # only the time of the change of its state tells
    assert checksums.sha256_of(path) == ABC
    assert checksums.problem_of(path, ABC) == ""
    assert checksums.problem_of(path, "0" * 64) == checksums.CHANGED
    assert checksums.problem_of(tmp_path / "absent", ABC) == checksums.MISSING
    assert checksums.problem_of(path / "below", ABC) == checksums.MISSING


def test_what_is_remembered_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    checksums._KNOWN[checksums._state(path)] = "as a disk that changed it later leaves it"
    assert checksums.sha256_of(path) != ABC
    assert checksums.sha256_of(path, again=True) == ABC


@pytest.mark.parametrize("indent", [1, None])
def test_every_bit_of_a_sealed_record_counts(indent: int | None) -> None:
    content = checksums.sealed({"a": [1.5, "ä"], "b": {"checksum": ""}}, indent)
    found = json.loads(content)
    assert list(found) == ["a", "b", "checksum"]
    emptied = content.replace(found["checksum"].encode(), b"")
    assert found["checksum"] == hashlib.sha256(emptied).hexdigest()
    assert checksums.is_intact(content, found["checksum"])
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            try:
                record = json.loads(bytes(damaged))
            except ValueError:
                continue  # noticed when it is parsed
            if isinstance(record.get("checksum"), str):  # else noticed as a missing or an unknown key
                assert not checksums.is_intact(bytes(damaged), record["checksum"]), (position, bit)


def test_a_page_with_its_checksum() -> None:
    page = b"<html><p>one</p></html>\n"
    sealed = checksums.sealed_text(page)
    assert sealed.startswith(page)
    assert hashlib.sha256(page).hexdigest().encode() in sealed
    assert checksums.text_problem(sealed) == ""
    assert checksums.text_problem(page) == ""  # written without one
    assert checksums.text_problem(sealed.replace(b"one", b"two")) == checksums.CHANGED
    for cut in (1, 100, len(sealed) - len(page) + 10):
        assert checksums.text_problem(sealed[:-cut]) == "its end is missing or has changed"


def test_references_with_and_without_a_checksum(tmp_path: Path) -> None:
    file = tmp_path / "references.json"
    scores = {name: Score(value=0.5, n=10, stderr=0.1) for name in ("scores", "checksum")}
    assert read_references(file) == {}
    write_references(file, scores)
    assert read_references(file) == scores
    content = file.read_text()
    file.write_text(content.replace("0.5", "0.7"))
    with pytest.raises(InputError, match=r"references\.json' is damaged: its content has changed"):
        read_references(file)
    file.write_text(content.replace('"checksum": "', '"checksun": "'))
    with pytest.raises(InputError, match=r"references\.json' is damaged: no scores in it"):
        read_references(file)
    file.write_text(json.dumps({name: score.model_dump() for name, score in scores.items()}))
    assert read_references(file) == scores
