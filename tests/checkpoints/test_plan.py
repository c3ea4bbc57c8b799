"""What is refused before anything is written: places, folders and files that cannot be meant."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.merge import check_target, merge_checkpoints, result_folder
from merganser.checkpoints.plan import make_plan
from merganser.checkpoints.recipe_file import parse
from merganser.errors import InputError
from tests.checkpoints.conftest import example, write_file


def recipe(names: list[Any], **more: Any) -> Any:
    return parse({"rule": "linear", "models": names, **more}, "test")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_inputs_are_never_replaced(family: dict[str, Path], tmp_path: Path) -> None:
    root = family["a"].parent
    before = contents(root)
    names = [str(family["a"]), str(family["b"])]
    fishers = [{"model": name, "fisher": str(family["base"])} for name in names]
    for out in (root, family["a"], family["b"], root / "a" / ".." / "b"):
        with pytest.raises(InputError, match="an input of the merge"):
            merge_checkpoints(recipe(names), out, overwrite=True)
    with pytest.raises(InputError, match="base is an input"):
        merge_checkpoints(recipe(names, base=str(family["base"])), family["base"], overwrite=True)
    with pytest.raises(InputError, match="base is an input"):
        merge_checkpoints(recipe(fishers, rule="fisher"), family["base"], overwrite=True)
    with pytest.raises(InputError, match="holds an input"):
        merge_checkpoints(recipe([str(family["b"] / "model.safetensors")]), family["b"], overwrite=True)
    assert contents(root) == before


def test_inputs_behind_links_are_not_replaced_either(family: dict[str, Path], tmp_path: Path) -> None:
    """A folder reached by a link, and files that are links, as those of the hub."""
    (tmp_path / "link").symlink_to(family["a"])
    with pytest.raises(InputError, match="an input"):
        merge_checkpoints(recipe([str(tmp_path / "link")]), family["a"], overwrite=True)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(family["b"], blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    with pytest.raises(InputError, match="holds an input"):
        merge_checkpoints(recipe([str(snapshot)]), blobs, overwrite=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(family["a"])
    with pytest.raises(InputError, match="holds an input"):
        merge_checkpoints(recipe([str(tmp_path / "links" / "one")]), tmp_path / "links", overwrite=True)
    merge_checkpoints(recipe([str(family["a"])]), family["a"] / "inside")


def test_a_mount_point_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(InputError, match="disk is a mount point"):
        check_target(tmp_path / "disk", False)


def test_too_many_open_files_have_another_remedy_than_a_full_disk(tmp_path: Path) -> None:
    import errno

    from merganser.errors import RunError

    with (
        pytest.raises(RunError, match=r"failed at shard: Too many open files.*ulimit -n") as caught,
        result_folder(tmp_path / "out"),
    ):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "shard")
    assert "make room" not in str(caught.value)


def test_nothing_is_kept_from_a_base_that_is_not_there(family: dict[str, Path]) -> None:
    overrides = [{"match": "*norm*", "from": "base"}]
    with pytest.raises(InputError, match=r"copies model\.norm\.weight from the base, but there is no base"):
        make_plan(recipe([str(family["a"]), str(family["b"])], overrides=overrides))


def test_integers_alone_are_nothing_to_merge(tmp_path: Path) -> None:
    names = [str(write_file(tmp_path / f"{name}.safetensors", {"w": np.arange(4)})) for name in "ab"]
    with pytest.raises(InputError, match="nothing to merge"):
        make_plan(recipe(names))


@pytest.mark.parametrize("order", [1, -1])
def test_a_tensor_of_integers_here_and_of_numbers_there(order: int, tmp_path: Path) -> None:
    tensors = {"w": np.ones(4, np.float32)}
    names = [
        str(write_file(tmp_path / "a.safetensors", {**tensors, "x": np.arange(4)})),
        str(write_file(tmp_path / "b.safetensors", {**tensors, "x": np.ones(4, np.float32)})),
    ]
    with pytest.raises(InputError, match=r"x is (F32|I64) in .*, (F32|I64) in"):
        make_plan(recipe(names[::order]))


def test_two_things_that_claim_to_be_the_weights(family: dict[str, Path]) -> None:
    write_file(family["a"] / "model.safetensors", example(3))
    with pytest.raises(InputError, match=r"has model\.safetensors\.index\.json and model\.safetensors"):
        make_plan(recipe([str(family["a"])]))
    make_plan(recipe([str(family["a"] / "model.safetensors")]))
    index = family["a"] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(example(3), "model.safetensors")}))
    make_plan(recipe([str(family["a"])]))
