from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from merganser.checkpoints.adapters.merge import merge_adapters
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe import Recipe
from merganser.errors import InputError
from merganser.files.digests import file_digest
from merganser.learner import Learner
from merganser.lineage import FILE, Lineage, read_lineage, weights_digest, write_lineage
from tests.learner import toys


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters and whole models after each of two tasks: ``adapter-mood``, ``whole-topic`` ..."""
    run = toys.copy_of_trained(tmp_path_factory.mktemp("merged-lineage"))
    with Learner.open(run, read_only=True) as learner:
        for task in ("mood", "topic"):
            learner.export(run.parent / f"adapter-{task}", after=task)
            learner.export(run.parent / f"whole-{task}", after=task, merged=True)
    return run.parent


def lineage(folder: Path) -> Lineage:
    read = read_lineage(folder)
    assert read is not None
    return read


@pytest.mark.parametrize("form", ["adapter", "whole"])
def test_a_merge_has_the_lineage_of_its_models(
    form: str, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = file_digest
    monkeypatch.setattr("merganser.lineage.file_digest", lambda path: (hashed.append(path.name), digest(path))[1])
    merge = merge_adapters if form == "adapter" else merge_checkpoints
    mood, topic = (exports / f"{form}-{task}" for task in ("mood", "topic"))
    merge(Recipe(rule="linear", models=[str(mood), str(topic)]), tmp_path / "merged")
    merged = lineage(tmp_path / "merged")
    assert merged.base == lineage(mood).base
    assert merged.data == lineage(topic).data
    assert [(parent.name, parent.weights) for parent in merged.parents] == [
        (folder.name, lineage(folder).weights) for folder in (mood, topic)
    ]
    assert sorted(hashed) == sorted(merged.files)  # large files are read once
    assert merged.weights == weights_digest(merged.files) != lineage(topic).weights
    assert not (tmp_path / "merged" / "merganser.json").exists()  # it describes one of the models


def test_adapters_of_different_models_are_refused_by_name(exports: Path, tmp_path: Path) -> None:
    other = shutil.copytree(exports / "adapter-topic", tmp_path / "other")
    changed = lineage(other).base.model_copy(update={"name": "matcher-2", "sha256": "0" * 64})
    write_lineage(other, lineage(other).model_copy(update={"base": changed}))
    recipe = Recipe(rule="linear", models=[str(exports / "adapter-mood"), str(other)])
    with pytest.raises(InputError, match=r"trained on 'matcher' \(\w{12}\), .*other on 'matcher-2' \(0{12}\)"):
        merge_adapters(recipe, tmp_path / "merged")
    merge_adapters(recipe.model_copy(update={"allow_different_bases": True}), tmp_path / "merged")
    assert not (tmp_path / "merged" / FILE).exists()
