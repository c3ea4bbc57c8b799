from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.learner import Learner
from merganser.lineage import FILE, Lineage, read_lineage, weights_digest, write_lineage
from tests.learner.toys import copy_of_trained, model_folder, read_json, rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_trained(tmp_path_factory.mktemp("lineage"))


def lineage_of(run: Path, row: str) -> Lineage:
    return Lineage.model_validate(read_json(run / "tasks" / row / "row.json")["lineage"])


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_every_row_has_the_hashes_of_what_it_was_made_from(trained: Path) -> None:
    start, mood, topic = (lineage_of(trained, row) for row in ("00-start", "01-mood", "02-topic"))
    assert start.base == mood.base == topic.base
    assert mood.base.name == str(model_folder())
    assert len(mood.base.sha256) == len(mood.tokenizer) == 64
    assert mood.quantisation == "none"
    assert [[task.task for task in row.data] for row in (start, mood, topic)] == [[], ["mood"], ["topic"]]
    for name, lineage in (("00-start", start), ("01-mood", mood), ("02-topic", topic)):
        assert lineage.weights == sha256(trained / "tasks" / name / "adapter" / "adapter_model.safetensors")
    (data,) = mood.data
    assert data.files["train"] == f"mood.json sha256:{sha256(trained.parent / 'mood.json')}"
    texts = "".join(f"{row['input']}\0{row['output']}\0" for row in rows("mood", 12))
    assert data.splits["train"].sha256 == hashlib.sha256(texts.encode()).hexdigest()
    assert {name: split.rows for name, split in data.splits.items()} == {"train": 12, "test": 8}


def test_a_run_recognises_its_tokenizer(trained: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(model_folder(), tmp_path / "base"))
    file = base / "tokenizer.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content))  # written otherwise, the same
    with Learner.open(trained, read_only=True, model_path=str(base)) as learner:
        assert learner.learned == ["mood", "topic"]
    pieces = content["model"]["vocab"]
    pieces["film"], pieces["match"] = pieces["match"], pieces["film"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"tokenizer of '.*base' \(\w{12}\) is not the one that .* \(\w{12}\)"):
        Learner.open(trained, read_only=True, model_path=str(base))


def test_another_tokenizer_is_refused(trained: Path) -> None:
    lineage = lineage_of(trained, "01-mood")
    lineage.check_base(lineage.base, lineage.tokenizer, "It")
    with pytest.raises(
        InputError, match=rf"It was trained with the tokenizer {lineage.tokenizer[:12]} of .*\(0{{12}}\)"
    ):
        lineage.check_base(lineage.base, "0" * 64, "It")


def test_weights_in_several_files_have_one_hash() -> None:
    assert weights_digest({"a.safetensors": "1", "config.json": "2"}) == "1"
    several = {"a.safetensors": "1", "b.safetensors": "2"}
    assert weights_digest(several) == weights_digest(dict(reversed(several.items()))) != "1"


@pytest.mark.parametrize(
    ("content", "why"),
    [("{", "is damaged"), ('{"format": 2}', "newer version"), ('{"format": 1, "base": 3}', "base: ")],
)
def test_a_record_that_cannot_be_read(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=why):
        read_lineage(tmp_path)


def test_a_record_is_read_as_it_was_written(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    (tmp_path / "README.md").write_text("edited")
    written = write_lineage(tmp_path, lineage_of(trained, "01-mood"), without=("README.md",))
    assert written.files == {"weights": sha256(tmp_path / "weights")}
    assert read_lineage(tmp_path) == written
    assert read_lineage(tmp_path / "elsewhere") is None
