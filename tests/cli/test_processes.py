"""Several real processes that train one model together, against one: ``torchrun``, ``accelerate launch``, FSDP2.

Most are forked from a process that has everything imported, with the environment that the launchers give their
processes; one goes through a launcher itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.cli.spawner import LIFE, ROOT, Spawner, until
from tests.learner import toys
from tests.learner.toys import model_folder, read_json, write_rows, write_stream

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
}
"""What ``accelerate launch`` tells its processes with an FSDP configuration."""

DECISIONS = ("task", "step", "cause", "status", "alarms", "interval", "next_interval", "rehearsal_steps")
ROUNDING = 1e-4
"""Relative difference of weights (as one vector) and of losses, many times what the order of sums explains."""
COARSE = 0.1
"""The same in bf16, where gradients have three digits and Adam makes steps of equal size of all of them."""

CASES: dict[str, dict[str, Any]] = {
    # 12 examples in batches of 11: the last batch of an epoch has one example for two processes.
    "matcher, a last batch of one example": {
        "training": {"steps": None, "epochs": 3, "batch": 11},
        "method": {"merge_at_end": True, "probe_set": "fresh"},
    },
    "causal, all weights, accumulation, batch of 3, a watched task": {
        "watch": [{"name": "safety", "test": "truth-test.json", "group": "safety"}],
        "model": {"kind": "causal", "lora": None},
        "training": {"batch": 3, "accumulation": 2, "learning_rate": 0.002, "weight_decay": 0.1, "steps": 7},
    },
    "seq2seq, all weights, importance masks": {
        "model": {"kind": "seq2seq", "lora": None},
        "method": {"fusion": "importance_masks"},
        "training": {"learning_rate": 0.002, "gradient_checkpointing": True},
    },
    "seq2seq, bf16": {
        "model": {"kind": "seq2seq", "precision": "bf16"},
        "training": {"steps": 7, "accumulation": 2, "batch": 3},
    },
    "matcher, refused merges, the best weights": {
        "method": {"guard_factor": 1.0001},
        "training": {"steps": 12, "select_best": True, "select_every": 5},
    },
    "replay, causal, mixed and packed, conversations, a function as metric": {
        "mix": {"file": "truth.json", "share": 0.3},
        "model": {"kind": "causal", "name": "chat"},
        # One or two rows for two processes.
        "method": {"name": "replay", "share": 0.3, "spacing": "model_time", "day_steps": 2, "finish_weight": 0.5},
        "training": {"batch": 5, "packing": "packed"},
    },
    "sfa": {"method": {"name": "sfa", "merge_first": True}, "training": {"steps": 4}},
}


def chat_model(folder: Path) -> Path:
    """A decoder with a chat template."""
    return tiny.tiny_llama(folder / "chat", [*tiny.TEXTS, *toys.CUES.values()], layers=1, pad=True, chat=True)


def write_chats(folder: Path) -> None:
    """Conversations of two and of four turns, of very different lengths."""
    rows = []
    for number in range(12):
        turns = [("user", f"film {number}?"), ("assistant", "a poor end"), ("user", "and " * number + "the story?")]
        turns = [*turns, ("assistant", "weak, " * (number % 3) + "bad")]
        kept = turns if number % 2 else turns[2:]
        rows.append({"messages": [{"role": role, "content": content} for role, content in kept]})
    write_rows(folder / "chat.json", rows)


def letters(answers: Sequence[str], references: Sequence[str], inputs: Sequence[str]) -> list[float]:
    """A metric: the letters of an answer among those of all texts."""
    texts = zip(answers, references, inputs, strict=True)
    return [len(answer) / len(answer + reference + given) for answer, reference, given in texts]


def stream_of(folder: Path, case: Mapping[str, Any]) -> Path:
    """The stream of a case, without dropout: of that every process has its own."""
    changes = {section: dict(change) if section != "watch" else change for section, change in case.items()}
    model = changes.setdefault("model", {})
    chats = model.get("name") == "chat"
    model["name"] = str(chat_model(folder) if chats else model_folder(model.get("kind", "matcher")))
    model.setdefault("lora", {"r": 4, "dropout": 0.0})
    model["dropout"] = 0.0
    method, mix, watch = changes.pop("method", {}), changes.pop("mix", None), changes.pop("watch", [])
    if "name" not in method:
        method = {"name": "aim", "interval": 2, "cold_start": 1, "rehearsal_steps": 1, **method}
    changes["training"] = {"steps": 8, "checkpoint_minutes": None, **changes.get("training", {})}
    path = write_stream(folder, **changes)
    values = toys.settings(**changes)
    values["method"] = method
    values["stream"]["mix"] = mix
    values["stream"]["watch"] = watch
    if chats:
        write_chats(folder)
        tasks = values["stream"]["tasks"]
        tasks[1] = {"name": "chat", "train": "chat.json", "test": "chat.json", "metric": f"{__name__}:letters"}
    if values["training"].get("select_best"):
        for task in values["stream"]["tasks"]:
            task["dev"] = task["test"]
    toys.write_config(path, values)
    return path


@contextmanager
def meeting(count: int) -> Iterator[list[dict[str, str]]]:
    """The environments of processes that will meet, as ``torchrun`` sets them; the port is held from the beginning."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    yield [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    del store


def together(
    spawner: Spawner,
    *arguments: str | Path,
    count: int = 2,
    environment: Mapping[str, str] | None = None,
    call: str | None = None,
) -> list[toys.Done]:
    """A command in several processes; what each of them left. When one fails, the others are ended."""
    with meeting(count) as environments:
        numbers = [
            spawner.start(*arguments, call=call, environment={**each, **(environment or {})}) for each in environments
        ]
        done = []
        for position, number in enumerate(numbers):
            done.append(spawner.wait(number))
            if done[-1].code:
                for other in numbers[position + 1 :]:
                    os.kill(other, signal.SIGKILL)
    return done


def succeed(done: list[toys.Done]) -> None:
    assert [each.code for each in done] == [0] * len(done), "\n".join(each.err for each in done)


def ledger(run: Path) -> list[dict[str, Any]]:
    file = run / "ledger.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def signals(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(run.glob("tasks/*/signals.jsonl")) for line in file.open()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted(run.glob("tasks/*/*/*.safetensors"))
    assert files
    return {f"{file.relative_to(run)} {name}": t for file in files for name, t in load_file(file).items()}


def alike(one: Path, several: Path, within: float = ROUNDING) -> None:
    """Decisions and scores are the same, weights and losses up to rounding."""
    mine, theirs = ledger(one), ledger(several)
    assert [[merge[key] for key in DECISIONS] for merge in theirs] == [[m[key] for key in DECISIONS] for m in mine]
    for left, right in zip(mine, theirs, strict=True):
        for key, value in left.items():
            if isinstance(value, float):
                assert right[key] == pytest.approx(value, rel=10 * within, abs=10 * within), key
    for left, right in zip(signals(one), signals(several), strict=True):
        assert {key: right[key] for key in ("step", "interval", "learning_rate")} == {
            key: left[key] for key in ("step", "interval", "learning_rate")
        }
        for key in ("loss", "probe", "threshold"):
            assert right[key] == (left[key] if left[key] is None else pytest.approx(left[key], rel=within, abs=within))
    assert read_json(several / "scores.json")["rows"] == read_json(one / "scores.json")["rows"]
    left, right = weights(one), weights(several)
    assert left.keys() == right.keys()
    size = torch.sqrt(sum((t.double() ** 2).sum() for t in left.values()))
    distance = torch.sqrt(sum(((left[name].double() - right[name].double()) ** 2).sum() for name in left))
    assert float(distance / size) <= within
    for mine, theirs in zip(
        sorted(one.glob("tasks/*/row.json")), sorted(several.glob("tasks/*/row.json")), strict=True
    ):
        for task, other in zip(read_json(mine)["tasks"], read_json(theirs)["tasks"], strict=True):
            counts = ("steps", "examples_trained", "examples_rehearsed", "examples_probed", "examples_evaluated")
            assert {key: other["cost"][key] for key in counts} == {key: task["cost"][key] for key in counts}


KINDS: dict[str, dict[str, str]] = {"ddp": {}, "fsdp": SHARDED}
WAYS = {
    **dict.fromkeys(CASES, tuple(KINDS)),
    "seq2seq, all weights, importance masks": ("fsdp",),
    "seq2seq, bf16": ("ddp",),
    "matcher, refused merges, the best weights": ("fsdp",),
    "replay, causal, mixed and packed, conversations, a function as metric": ("ddp",),
    "sfa": ("fsdp",),
}
"""With which of them a case is tried: each part of it once with whole weights or shards, where both share the code."""


def kept_answers(run: Path) -> list[Any]:
    """The answers of every row and task."""
    return [json.loads(line) for file in sorted(run.glob("tasks/*/answers.jsonl")) for line in file.open()]


def trained_on(run: Path) -> list[Any]:
    """Rows and tokens of each source, of every task."""
    return [task["trained"] for row in sorted(run.glob("tasks/*/row.json")) for task in toys.read_json(row)["tasks"]]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_as_one(case: str, spawner: Spawner, tmp_path: Path) -> None:
    stream = stream_of(tmp_path, CASES[case])
    one = tmp_path / "one"
    succeed([spawner.wait(spawner.start("run", stream, "--out", one))])
    if CASES[case].get("method", {}).get("name", "aim") == "aim":
        assert any(merge["rehearsal_steps"] for merge in ledger(one))
    assert ("refused" in case) == any(merge["status"] == "refused" for merge in ledger(one))
    within = COARSE if "bf16" in case else ROUNDING
    for name in WAYS[case]:
        several = tmp_path / name
        succeed(together(spawner, "run", stream, "--out", several, environment=KINDS[name]))
        alike(one, several, within)
        mine, theirs = kept_answers(one), kept_answers(several)
        assert [(each["row"], each["task"]) for each in theirs] == [(each["row"], each["task"]) for each in mine]
        watched = [answers for answers in theirs if answers["task"] == "safety"]
        assert [answers["row"] for answers in watched] == ([0, 1, 2] if "watched" in case else [])
        assert [len(answers["scores"]) for answers in watched] == [8] * len(watched)
        assert trained_on(several) == trained_on(one)
        if "conversations" in case:
            (score,) = (row["scores"]["chat"] for row in read_json(several / "scores.json")["rows"][-1:])
            assert 0 < score["value"] < 1


def launch(*arguments: str) -> None:
    """What the program ``accelerate launch`` does, in a process that has nearly everything imported."""
    from accelerate.commands.launch import main

    sys.argv = ["accelerate-launch", *arguments]
    main()


PLACEHOLDER = f"""#!{sys.executable} -SE
import json, os, pathlib, sys, time
given = pathlib.Path(sys.argv[0]).with_name("process-" + os.environ["RANK"])
given.with_suffix(".new").write_text(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}))
given.with_suffix(".new").rename(given)
for _ in range({LIFE} * 100):
    time.sleep(0.01)
    if given.with_suffix(".code").is_file():
        sys.exit(int(given.with_suffix(".code").read_text()))
sys.exit("nobody took my place")
"""
"""A program that says with what it was started, and ends as the process that is forked in its place."""


def test_a_launcher_itself(spawner: Spawner, tmp_path: Path) -> None:
    """``accelerate launch`` with the configuration in ``examples`` (FSDP2), which starts ``torchrun``; T5 with LoRA."""
    stream = stream_of(tmp_path, {"model": {"kind": "seq2seq"}})
    one, several, program = tmp_path / "one", tmp_path / "several", tmp_path / "merganser"
    succeed([spawner.wait(spawner.start("run", stream, "--out", one))])
    program.write_text(PLACEHOLDER)
    program.chmod(0o755)
    how = ("--main_process_port", "0", "--num_processes", "2", "--no_python")
    configured = ("--config_file", ROOT / "examples" / "accelerate" / "fsdp.yaml")
    command = (program, "run", stream, "--out", several)
    launcher = spawner.start(*how, *configured, *command, call=f"{__name__}:launch")
    numbers = []
    for given in (tmp_path / "process-0", tmp_path / "process-1"):
        until(given.is_file)
        started = read_json(given)
        numbers.append(spawner.start(*started["arguments"], environment=started["environment"]))
    done = [spawner.wait(number) for number in numbers]
    for rank, each in enumerate(done):
        written = tmp_path / f"process-{rank}.writing"
        written.write_text(str(each.code))
        written.rename(tmp_path / f"process-{rank}.code")  # whole, when the placeholder sees it
    succeed([*done, spawner.wait(launcher)])
    assert [each.out.count("Page: ") for each in done] == [1, 0]  # only process 0 writes
    alike(one, several)


def four_bit() -> dict[str, Any]:
    """The stream of toys, for a decoder of 4-bit weights."""
    model = {"kind": "causal", "name": str(model_folder("causal", width=64)), "weights": "4bit"}
    return toys.settings(model=model, method="replay")


def test_what_cannot_be_done_by_several_processes(spawner: Spawner, tmp_path: Path) -> None:
    """Every process ends with exit code 2, process 0 says why, and nothing is left behind."""
    stream = stream_of(tmp_path, {"training": {"batch": 2}})

    def refused(*arguments: str | Path, count: int = 2, **environment: str) -> str:
        done = together(spawner, *arguments, count=count, environment=environment)
        assert done[0].code == 2, done[0].err
        assert all(each.err == "" for each in done[1:])
        assert not (tmp_path / "run").exists()
        return done[0].error

    run = ("run", stream, "--out", tmp_path / "run")
    assert "training.batch is 2, for 3 processes together" in refused(*run, count=3)
    assert "learns in one process" in refused(*run, "--method", "ewc")
    assert "`merganser undo` runs in one process" in refused("undo", tmp_path / "run")
    assert "FSDP version 1" in refused(*run, **{**SHARDED, "FSDP_VERSION": "1"})
    assert "offloaded parameters" in refused(*run, **{**SHARDED, "FSDP_OFFLOAD_PARAMS": "true"})
    quantised = ("run", toys.write_config(tmp_path / "4bit.yaml", four_bit()), "--out", tmp_path / "run")
    message = "FSDP shards whole weights, and model.weights is 4bit. Use DDP (torchrun without FSDP), or model.weights"
    assert message in refused(*quantised, **SHARDED)
    assert "no layer of class Nothing" in refused(*run, **SHARDED, FSDP_TRANSFORMER_CLS_TO_WRAP="Nothing")
