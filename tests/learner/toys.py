"""Tiny models, tasks and runs that the tests of the learner and of the command share."""

from __future__ import annotations

import functools
import gc
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from tests import tiny

LABELS = {"mood": ("good", "bad"), "topic": ("sport", "business"), "truth": ("right", "wrong")}
"""Three tasks with two labels each."""

CUES = {
    "good": "great film with a strong story",
    "bad": "weak film with a poor end",
    "sport": "the team won the match",
    "business": "the bank cut its rates",
    "right": "two and two is four",
    "wrong": "two and two is five",
}
NOISE = tuple("the a film story play market minute world last first bank was good bad".split())  # noqa: SIM905


def rows(task: str, number: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of a task: a few words of the label's cue among words that say nothing."""
    generator = random.Random(f"{task} {seed}")
    found = []
    for index in range(number):
        label = LABELS[task][index % 2]
        words = generator.sample(CUES[label].split(), 3) + generator.choices(NOISE, k=3)
        generator.shuffle(words)
        found.append({"input": " ".join(words), "output": label})
    return found


def write_rows(path: Path, values: Sequence[Mapping[str, Any]]) -> Path:
    """A ``.json`` file with these rows."""
    path.write_text(json.dumps(list(values)), encoding="utf-8")
    return path


_HOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def model_folder(kind: str = "matcher", layers: int = 1, width: int = 32) -> Path:
    """The tiny model of a kind (T5: ``layers`` twice). Written once per test process; removed with it.

    For 4-bit weights the width is 64: not all kernels of bitsandbytes read rows of less than a block rightly.
    """
    holder = tempfile.TemporaryDirectory(prefix="merganser-tiny-")
    _HOLDERS.append(holder)
    make = {"matcher": tiny.tiny_bert, "seq2seq": tiny.tiny_t5, "causal": tiny.tiny_llama}[kind]
    folder = make(Path(holder.name) / kind, [*tiny.TEXTS, *CUES.values(), " ".join(CUES)], layers=layers, width=width)
    # What is loaded by now stays; training collects garbage after every task, and need not look at it again.
    gc.collect()
    gc.freeze()
    return folder


def settings(tasks: Sequence[str] = ("mood", "topic"), **changes: Any) -> dict[str, Any]:
    """A configuration as in a YAML file; ``changes`` are ``section={...}`` put on top, or ``section=value``."""
    values: dict[str, Any] = {
        "model": {"name": str(model_folder()), "kind": "matcher", "precision": "fp32", "lora": {"r": 4}},
        "stream": {"tasks": [{"name": t, "train": f"{t}.json", "test": f"{t}-test.json"} for t in tasks]},
        "method": {"name": "aim", "interval": 2, "cold_start": 1},
        "memory": {"number": 4},
        "training": {"steps": 6, "batch": 4, "learning_rate": 0.02, "warmup": 1, "max_input": 32, "max_target": 8},
        "seed": 1,
    }
    for section, change in changes.items():
        old = values.get(section)
        values[section] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return values


def write_stream(folder: Path, tasks: Sequence[str] = ("mood", "topic"), **changes: Any) -> Path:
    """Data files and ``stream.yaml`` in a folder; as :func:`settings`."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in LABELS:
        write_rows(folder / f"{task}.json", rows(task, 12))
        write_rows(folder / f"{task}-test.json", rows(task, 8, seed=1))
    return write_config(folder / "stream.yaml", settings(tasks, **changes))


def write_config(path: Path, values: Mapping[str, Any]) -> Path:
    """A YAML file."""
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails unless standard error ends with exactly one, and shows no traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err, self.err
        return lines[0].removeprefix("error: ")


_command_of = functools.cache(typer.main.get_command)
"""Made once: reading all signatures takes longer than most commands."""


class Command:
    """Calls the command's own entry point in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: str | Path) -> Done:
        from merganser.cli import main

        self.monkeypatch.setattr("typer.main.get_command", _command_of)
        self.monkeypatch.setattr(sys, "argv", ["merganser", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = self.capsys.readouterr()
        code = stopped.value.code
        return Done(code if isinstance(code, int) else 0, captured.out, captured.err)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, every folder with ``None``; the lock left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def results(run: Path) -> dict[str, bytes]:
    """What must not depend on how often a run was interrupted: weights, scores, ledger, memory, signals."""
    kept = ("*.safetensors", "scores.json", "ledger.jsonl", "memory.jsonl", "signals.jsonl", "merges.jsonl", "ROW")
    files = sorted({path for pattern in kept for path in run.rglob(pattern)})
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def values_of(run: Path) -> list[dict[str, float]]:
    """The score matrix in ``scores.json``: one mapping from task to score per row."""
    return [{n: s["value"] for n, s in row["scores"].items()} for row in read_json(run / "scores.json")["rows"]]


@functools.cache
def _trained() -> Path:
    """A folder with ``stream.yaml`` and its finished ``run``: the matcher has learned mood and topic with aim."""
    from merganser.config import load_config
    from merganser.learner import Learner
    from merganser.streams.loading import load_stream

    holder = tempfile.TemporaryDirectory(prefix="merganser-run-")
    _HOLDERS.append(holder)
    folder = Path(holder.name)
    config = load_config(write_stream(folder))
    assert config.stream is not None
    with Learner.of_config(folder / "run", config) as learner:
        learner.learn_stream(load_stream(config.stream, folder).tasks)
    return folder


def copy_of_trained(target: Path) -> Path:
    """A copy of the finished run with its stream: ``target/run`` and ``target/stream.yaml``. Returns the run."""
    shutil.copytree(_trained(), target, dirs_exist_ok=True)
    return target / "run"


def without_checksums(run: Path) -> Path:
    """Make a run one in which no checksums were recorded; its files can then be changed. Returns it."""
    for file in run.glob("tasks/*/row.json"):
        content = read_json(file)
        for key in ("sha256", "run_sha256", "checksum"):
            del content[key]
        file.write_text(json.dumps(content), encoding="utf-8")
    return run


def flip_bit(file: Path, position: float | bytes = 0.5) -> None:
    """Change the lowest bit of one byte of a file: at a share of its length, or the one after a text."""
    content = bytearray(file.read_bytes() or b"\n")
    if isinstance(position, bytes):
        place = content.index(position) + len(position)
    else:
        place = int(position * (len(content) - 1))
    content[place] ^= 1
    file.write_bytes(content)
