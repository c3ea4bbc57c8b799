"""What every method says that it stores is what lies on disk, and is all that later tasks need."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merganser import Learner
from merganser.methods import METHODS
from merganser.runs import RunDirectory
from tests.learner import toys
from tests.learner.test_learner import sections, task

TASKS = ("mood", "topic", "truth")
CASES = [(name, lora) for name, method in METHODS.items() for lora in (True, False) if lora or not method.lora_only]


def options_of(name: str, lora: bool) -> dict[str, Any]:
    """Two steps of a method on the tiny matcher."""
    given = sections(training={"steps": 2, "learning_rate": 0.02 if lora else 1e-3}, evaluation={"future": False})
    given["method"] = {
        "name": name,
        **({"preference": "feature_similarity"} if name == "tunable_magmax" else {}),
        **({"models": 2} if name == "kmerge" else {}),
        **({"steps": 2} if name == "trm" else {}),
        **({"fisher_examples": 4} if name in ("cofima", "pm", "became") else {}),
    }
    if not lora:
        given["model"]["lora"] = None
    return given


def file_bytes(folder: Path) -> int:
    """Of the files of weights in a folder; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def tensor_bytes(folder: Path) -> int:
    """Of the tensors in a folder's files: all but the names before them."""
    total = 0
    for file in folder.glob("*.safetensors"):
        (header,) = struct.unpack("<Q", file.read_bytes()[:8])
        total += file.stat().st_size - 8 - header
    return total


def noted_bytes(name: str, folder: Path) -> int:
    """Of what a method notes as text: K-Merge's whole file, OPCM's numbers as doubles."""
    if name == "kmerge":
        return (folder / "slots.json").stat().st_size
    if name == "opcm":
        return sum(8 * len(numbers) for numbers in json.loads((folder / "opcm.json").read_text()).values())
    return 0


@pytest.mark.parametrize(("name", "lora"), CASES)
def test_bytes_are_those_on_disk_and_suffice(name: str, lora: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Learner.open(run, **options_of(name, lora)) as learner:
        for each in TASKS[:2]:
            learner.learn(task(each))
        said = dict(learner.record.tasks[-1].method_bytes)
        answering = set(learner.session.answered_by().values())
        method = learner.session.method
        frozen = sum(p.nbytes for p in learner.session.backbone.module.parameters() if not p.requires_grad)
    rows = [row.folder for row in RunDirectory.open(run).rows]
    assert len(rows) == 3

    memory = [json.loads(line) for row in rows[1:] for line in (row / "memory.jsonl").open(encoding="utf-8")]
    assert said.pop("memory") == sum(len((line["input"] + line["output"]).encode()) for line in memory)
    assert (memory != []) == (method.uses_memory or method.full_memory)
    own = file_bytes(rows[-1] / "trained")
    assert (own > 0) == (method.start == "trained")
    assert said.pop("weights") == sum(file_bytes(rows[row] / "adapter") for row in answering) + own
    before_any = said.pop("pretrained weights", 0)
    assert before_any in (0, file_bytes(rows[0] / "adapter"))
    assert (before_any > 0) == method.keeps_pretrained(lora)
    earlier = said.pop("earlier tasks' weights", 0)
    # A file of whole weights has those, too, that are never trained; of earlier tasks they are not needed.
    unneeded_bytes = 0 if lora else frozen
    assert earlier == (tensor_bytes(rows[1] / "trained") - unneeded_bytes if name == "tunable_magmax" else 0)
    folder = rows[-1] / "method"
    assert sum(said.values()) == tensor_bytes(folder) + noted_bytes(name, folder)

    # Without anything that is not counted the next task comes out the same. The weights before any task stay: where
    # they are not counted, the ledger still measures lengths from them.
    shutil.copytree(run, tmp_path / "bare")
    bare = [row.folder for row in RunDirectory.open(tmp_path / "bare").rows]
    for number in range(1, len(bare)):
        spare = [] if number in answering else [bare[number] / "adapter"]
        if number < len(bare) - 1:
            spare += [bare[number] / "method"] + ([] if earlier else [bare[number] / "trained"])
        for unneeded in spare:
            shutil.rmtree(unneeded, ignore_errors=True)
    for folder in (run, tmp_path / "bare"):
        with Learner.open(folder) as learner:
            learner.learn(task(TASKS[2]))
    last = RunDirectory.open(run).rows[-1].folder.name
    whole, rest = (toys.contents(place / "tasks" / last / "adapter") for place in (run, tmp_path / "bare"))
    assert whole == rest
    assert any(content for content in whole.values())


def trained(name: str, folder: Path, **method: Any) -> dict[str, Tensor]:
    """The weights deployed after two tasks."""
    given = options_of("sequential", True)
    given["training"]["steps"] = 5
    given["method"] = {"name": name, **method}
    with Learner.open(folder, **given) as learner:
        for each in TASKS[:2]:
            learner.learn(task(each))
    (file,) = (RunDirectory.open(folder).rows[-1].folder / "adapter").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    ("name", "method", "other"),
    [
        ("ewc", {"weight": 0, "examples": 2}, "sequential"),
        ("migu", {"share": 1}, "sequential"),
        ("coma", {"alpha": 1}, "sequential"),
        ("kmerge", {"models": 2}, "single"),
        ("pam", {"share": 0}, "running_average"),
        ("ewc", {"weight": 1e6, "examples": 2}, None),
        ("migu", {"share": 0.3}, None),
    ],
)
def test_at_its_limit_a_method_is_a_simpler_one(
    name: str, method: dict[str, Any], other: str | None, tmp_path: Path
) -> None:
    """And away from it (``None``) it is not: the comparison can fail."""
    mine, its = trained(name, tmp_path / "one", **method), trained(other or "sequential", tmp_path / "other")
    assert mine.keys() == its.keys()
    same = all(torch.allclose(value, its[key], rtol=1e-5, atol=1e-7) for key, value in mine.items())
    assert same == (other is not None)
