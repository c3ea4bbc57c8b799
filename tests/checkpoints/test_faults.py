"""A kill, a power cut and an error at every call by which a merge writes: the same command repeats the merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from tests.checkpoints.conftest import write_folder
from tests.faults import check_every_error, check_every_stop

OUT = Path("out")


@pytest.mark.parametrize("check", [check_every_stop, check_every_error])
@pytest.mark.parametrize("replaced", [False, True], ids=["a new folder", "a folder is replaced"])
def test_interrupted_at_every_call(
    check: Callable[[Path, Callable[[], None]], None], replaced: bool, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    models = [str(tmp_path / name) for name in ("a", "b")]
    for model in models:
        tensors = {f"layers.{i}.weight": generator.normal(size=(3, 4)).astype(np.float32) for i in range(2)}
        write_folder(Path(model), tensors, shards=2)
    folder = tmp_path / "work"
    folder.mkdir()
    if replaced:
        write_folder(folder / OUT, tensors)

    def merge() -> None:
        recipe = parse({"rule": "linear", "models": models}, "test")
        merge_checkpoints(recipe, OUT, overwrite=True, kernels="numpy")

    check(folder, merge)
