"""The exact line that the command prints for each of a list of bad inputs, compared with ``messages.txt``.

After a change of wording, write the file again and read its difference before committing it::

    UPDATE_MESSAGES=1 pytest tests/cli/test_messages.py
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.learner import toys
from tests.learner.toys import Command, write_rows

SNAPSHOT = Path(__file__).with_name("messages.txt")
RUN = "run bad.yaml --out new"

# Changes of the stream file: (section, key, value); the value None removes the key.
CHANGES: list[tuple[str, str, Any]] = [
    ("training", "bacth", 3),
    ("training", "batch", 0),
    ("training", "batch", True),
    ("training", "learning_rate", "high"),
    ("method", "name", "aimm"),
    ("method", "treshold_factor", 2),
    ("method", "threshold_factor", float("inf")),
    ("memory", "share", 0),
    ("memory", "number", None),
    ("method", "batch", 5),
    ("method", "probe_batch", 9),
    ("training", "max_input", 500),
    ("model", "name", "./absent/model"),
    ("model", "name", "nobody/nothing"),
    ("model", "lora", {"targets": ["q_proj"]}),
    ("model", "kind", "seq2seq"),
    ("stream", "tasks", None),
    ("stream", "tasks", [{"name": "mood", "train": "absent.json"}]),
    ("stream", "tasks", [{"name": "mood", "train": "mood.json", "output": "outptu"}]),
    ("stream", "tasks", [{"name": "mood", "train": "mood.json"}, {"name": "mood", "train": "topic.json"}]),
    ("stream", "tasks", [{"name": "../mood", "train": "mood.json"}]),
    ("stream", "tasks", [{"name": "mood", "train": "cut.json"}]),
    ("stream", "tasks", [{"name": "mood", "train": "empty.json"}]),
    ("stream", "tasks", [{"name": "mood", "train": "blank.json"}]),
    ("stream", "tasks", [{"name": "mood", "train": "mood.json", "test": "topic.json"}]),
    (
        "stream",
        "tasks",
        [{"name": "mood", "train": "mood.json", "test": "mixed.json", "labels": ["good", "bad", "mixed"]}],
    ),
]

COMMANDS = (
    "run absent.yaml --out new",
    "run model.yaml --out new",
    "run data.txt --out new",
    "run stream.yaml --out data.txt",
    "run stream.yaml --out .",
    "run stream.yaml --out run --method sequential --seed 3",
    "run turned.yaml --out run",
    "learn absent --task truth --train truth.json",
    "learn run --task mood --train truth.json",
    "learn run --task truth --train absent.json",
    "learn run --task truth --train truth.json --input texts",
    "learn run --task truth --train truth.json --labels right,false",
    "learn run --task truth --train truth.json --metric acuracy",
    "learn run --task truth --train truth.json --prompt 'Is it true?'",
    "learn run --task truth --train truth.json --answer rank --labels none",
    "learn run --task truth --train truth.json --model m --config stream.yaml",
    "ask absent 'a text'",
    "ask run 'a text' --task moods",
    "ask run ' '",
    "evaluate absent",
    "export absent out",
    "export run data.txt",
    "export run out --task mood",
    "report absent",
    "report run --out run",
    "replay run --set interval",
    "replay run --set intervall=3",
    "replay run --set batch=3",
    "replay run --set fusion=importance_masks",
    "replay run --set threshold_factor=-1",
    "replay run --set 'interval=[1'",
    "replay run --task topics",
    "merge",
    "merge one two",
    "merge one two --out out --rule tie",
    "merge one --out out --weights 1,2",
    "merge one --out out --weights much",
    "merge one --out out --density 1",
    "merge one --out out --set t",
    "merge one --out out --set t=1",
    "merge one two --out out --rule slerp --set 't=['",
    "merge one two --out out --rule slerp --set t=[0.2,0.8]",
    "merge one two --out out --rule ties --density 1.5",
    "merge one two --out out --weights 1e400",
    "merge one --out out --fisher x --fisher y",
    "merge one --out out --kernels c",
    "merge one --out out --dtype int4",
    "merge ./nowhere --out out",
    "merge --config absent.yaml --out out",
    "merge --config data.txt --out out",
    "merge --config mood.json --out out",
    "merge --config x.yaml --mergekit y.yml --out out",
    "merge one --config x.yaml --out out",
    "merge x.yaml --rule linear --space update --out out",
)


def write_change(folder: Path, section: str, key: str, value: Any) -> str:
    """Write ``bad.yaml``: the stream file with one change. Returns the change as YAML."""
    values = yaml.safe_load((folder / "stream.yaml").read_text(encoding="utf-8"))
    if value is None:
        del values[section][key]
    else:
        values[section][key] = value
    toys.write_config(folder / "bad.yaml", values)
    return yaml.safe_dump({section: {key: value}}, default_flow_style=True, width=1000).strip()


@pytest.fixture
def folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a finished run, its stream, and files with one thing wrong in each."""
    work = run.parent
    rows = toys.rows("mood", 12)
    (work / "data.txt").write_text("no: [yaml", encoding="utf-8")
    (work / "cut.json").write_text('[{"input": "a", "output": "b"},\n{"input": ', encoding="utf-8")
    (work / "empty.json").write_text("", encoding="utf-8")
    write_rows(work / "mixed.json", [{"input": "a film", "output": "mixed"}])
    write_rows(work / "blank.json", [*rows[:4], {"input": "  ", "output": "good"}, *rows[5:]])
    toys.write_config(work / "model.yaml", {key: value for key, value in toys.settings().items() if key != "stream"})
    toys.write_config(work / "turned.yaml", toys.settings(("topic", "mood")))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # named in a message where it is set
    monkeypatch.chdir(work)
    return work


def test_messages(folder: Path, merganser: Command) -> None:
    before = toys.contents(folder / "run")
    printed = {}
    for change in CHANGES:
        shown = write_change(folder, *change)
        printed[f"{RUN}  # {shown}"] = merganser(*shlex.split(RUN))
    for command in COMMANDS:
        printed[command] = merganser(*shlex.split(command))
    assert [case for case, done in printed.items() if done.code != 2] == []
    assert toys.contents(folder / "run") == before
    assert not any((folder / name).exists() for name in ("new", "absent", "out"))
    text = "\n".join(f"$ merganser {case}\nerror: {done.error}\n" for case, done in printed.items())
    text = text.replace(str(toys.model_folder().parent), "MODELS")
    if os.environ.get("UPDATE_MESSAGES"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")
