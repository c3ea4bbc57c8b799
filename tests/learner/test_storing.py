"""What every method says that it stores is what lies on disk, and is all that later tasks need."""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merganser import Learner
from merganser.errors import InputError
from merganser.learner.memory_choice import frame
from merganser.methods import METHODS
from merganser.report.sections import memory as memory_section
from merganser.runs import RunDirectory
from merganser.runs.undo import undo_rows
from merganser.streams.options import MemoryOptions
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
    run, bare = tmp_path / "run", tmp_path / "bare"
    with Learner.open(run, **options_of(name, lora)) as learner:
        for each in TASKS[:2]:
            learner.learn(task(each))
        shutil.copytree(run, bare)
        answering = set(learner.session.answered_by().values())
        spare = check_what_is_counted(learner, lora, answering)
        # Without anything that is not counted the next task comes out the same. The weights before any task stay:
        # where they are not counted, the ledger still measures lengths from them.
        for unneeded in spare:
            shutil.rmtree(bare / unneeded.relative_to(run), ignore_errors=True)
        learner.learn(task(TASKS[2]))
        last = learner.session.rows[-1].folder.name
    with Learner.open(bare) as learner:
        learner.learn(task(TASKS[2]))
    whole, rest = (toys.contents(place / "tasks" / last / "adapter") for place in (run, bare))
    assert whole == rest
    assert any(content for content in whole.values())


def check_what_is_counted(learner: Learner, lora: bool, answering: set[int]) -> list[Path]:
    """What is said to be stored after two tasks against the files; the folders that need not be kept."""
    method, name = learner.session.method, learner.session.method.options.name
    said = dict(learner.record.tasks[-1].method_bytes)
    frozen = sum(p.nbytes for p in learner.session.backbone.module.parameters() if not p.requires_grad)
    rows = [row.folder for row in learner.session.rows]
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

    spare = [rows[number] / "adapter" for number in (1, 2) if number not in answering]
    return [*spare, rows[1] / "method", *([] if earlier else [rows[1] / "trained"])]


@pytest.fixture(scope="module")
def simpler(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Tensor]]:
    """The weights of a method with its default options; learned once."""
    return functools.cache(lambda name: trained(name, tmp_path_factory.mktemp(name) / "run"))


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
    name: str,
    method: dict[str, Any],
    other: str | None,
    simpler: Callable[[str], dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    """And away from it (``None``) it is not: the comparison can fail."""
    mine, its = trained(name, tmp_path / "run", **method), simpler(other or "sequential")
    assert mine.keys() == its.keys()
    same = all(torch.allclose(value, its[key], rtol=1e-5, atol=1e-7) for key, value in mine.items())
    assert same == (other is not None)


def test_a_memory_in_total_is_shared_anew_with_every_task_and_undone_with_it(tmp_path: Path) -> None:
    given = options_of("replay", True)
    given["memory"] = {"total": 7}
    held = []
    with Learner.open(tmp_path / "run", **given) as learner:
        for name in TASKS:
            learner.learn(task(name))
            held.append([kept for kept, _ in learner.session.memory()])
            memory = learner.record.tasks[-1].method_bytes["memory"]
            assert memory == sum(len((e.input + e.output).encode()) for _, e in learner.session.memory())
        assert [each.memory.budget for each in learner.record.tasks] == [7, 3, 2]
        shown = [(row["examples"], row["task"]) for row in memory_section(learner.record)["rows"]]
        with pytest.raises(InputError, match=r"memory.total is 7"):
            learner.learn_stream([task("mood"), *(replace(task("mood"), name=f"m{i}") for i in range(7))])
    assert held == [["mood"] * 7, ["mood"] * 4 + ["topic"] * 3, ["mood"] * 3 + ["topic"] * 2 + ["truth"] * 2]
    assert shown == [("3", "mood"), ("2", "topic"), ("2", "truth")]
    directory = RunDirectory.open(tmp_path / "run")
    with directory.lock:
        undo_rows(directory)
    with Learner.open(tmp_path / "run") as learner:
        assert [kept for kept, _ in learner.session.memory()] == held[1]


def test_a_model_that_writes_its_own_memory_keeps_no_training_text(tmp_path: Path) -> None:
    given = options_of("replay", True)
    given["model"] |= {"name": str(toys.model_folder("causal")), "kind": "causal"}
    given["memory"] = {"number": 4, "source": "self"}
    first = task("mood")
    with Learner.open(tmp_path / "run", **given) as learner:
        learner.learn(first)
        kept, record = learner.session.memory(), learner.record.tasks[0]
        learner.learn(task("topic"))
        assert learner.record.tasks[1].cost.examples_rehearsed == 8
    assert (len(kept), record.memory.sampler, record.cost.memory_seconds > 0) == (4, "self", True)
    texts = {example.input for _, example in kept}
    assert len(texts) == 4
    assert not texts & {example.input for example in first.train}
    assert {example.output for _, example in kept} <= set(first.labels or ())


def test_a_memory_that_the_model_cannot_write_is_refused_before_any_work(tmp_path: Path) -> None:
    given = options_of("replay", True)
    given["memory"] = {"source": "self", "number": 4}
    with Learner.open(tmp_path / "run", **given) as learner, pytest.raises(InputError, match="a model that writes"):
        learner.learn_stream([task("mood")])
    assert not list((tmp_path / "run" / "tasks").iterdir())
    with pytest.raises(ValueError, match="leave sampler"):
        MemoryOptions(source="self", sampler="uniform")


def test_what_all_texts_begin_and_end_with_is_found_in_whole_words() -> None:
    texts = ["Good or bad? Text: what a film\nAnswer:", "Good or bad? Text: where was it\nAnswer:"]
    assert frame(texts) == ("Good or bad? Text: ", "\nAnswer:")
    assert frame(["one text"]) == frame(["warm", "water"]) == frame(["cold", "old"]) == ("", "")
    assert frame(["a b", "a b c"]) == ("a ", "")
