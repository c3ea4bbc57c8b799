"""Every example runs as its first lines say, with a tiny model in place of the one it names."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import merganser
from merganser.cli import app
from merganser.config import RunConfig, load_config
from merganser.errors import InputError
from merganser.runs import read_run
from merganser.streams.builtin import BUILTIN
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.study.cells import make_study
from tests.streams.images.idx_bytes import idx
from tests.study.conftest import ForkedServer
from tests.tiny import tiny_bert, tiny_clip, tiny_llama, tiny_t5

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGURATIONS = sorted(EXAMPLES.glob("*.yaml"))
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
TINY = {"matcher": tiny_bert, "seq2seq": tiny_t5, "causal": lambda folder: tiny_llama(folder, pad=True, chat=True)}


def load_script(name: str) -> Callable[[list[str]], Any]:
    """The ``main`` of an example."""
    return runpy.run_path(str(EXAMPLES / name), run_name="example")["main"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of the examples and a tiny model of every kind."""
    folder = tmp_path_factory.mktemp("examples")
    load_script("make_data.py")(["--out", str(folder / "data"), "--train", "42", "--test", "8"])
    for kind, make in TINY.items():
        make(folder / kind)
    return folder


def tiny_run(home: Path, name: str, steps: int, model: str | None = None, **training: Any) -> Path:
    """Learns an example's configuration through the command: a tiny model and few steps, otherwise as it stands."""
    config = yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))
    config["model"]["name"] = str(home / (model or config["model"]["kind"]))
    if "split" in config["stream"]:
        config["stream"] |= {"folder": "images"} if name.startswith("builtin") else {}
        config["stream"]["split"] = {
            key: str(value).replace("../", "") if key in ("train", "test") else value
            for key, value in config["stream"]["split"].items()
        }
    config["model"].pop("revision", None)  # a branch of a hub id; the tiny model is a folder
    # In bf16 every new shape of a batch is compiled first, which takes longer than such models take to train.
    config["model"]["precision"] = "fp32"
    config["training"].pop("epochs", None)
    config["training"].update(steps=steps, batch=8, accumulation=1, learning_rate=0.01, **training)
    file = home / name
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    out = home / "runs" / file.stem
    app(["run", str(file), "--out", str(out)], standalone_mode=False)
    return out


def ask(run: Path, task: str, texts: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    app(["ask", str(run), "--task", task, "--json", *texts], standalone_mode=False)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_configurations_are_valid_and_name_models_of_the_hub(path: Path) -> None:
    config = load_config(path)
    if path.name != "fashion.yaml":  # whose model scripts/pretrain_vit.py makes
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", config.model.name)
    assert config.stream is not None


def test_data_are_the_same_for_the_same_seed_and_no_text_stands_in_two_splits(home: Path, tmp_path: Path) -> None:
    make = load_script("make_data.py")
    make(["--out", str(tmp_path / "same"), "--train", "42", "--test", "8"])
    make(["--out", str(tmp_path / "other"), "--train", "42", "--test", "8", "--seed", "1"])
    files = sorted(path.relative_to(home / "data") for path in (home / "data").rglob("*") if path.is_file())
    assert len(files) == 2 * 7 + 3 * 3 + 3 * 15
    for file in files:
        assert (home / "data" / file).read_bytes() == (tmp_path / "same" / file).read_bytes()
    assert (home / "data/tickets-train.csv").read_bytes() != (tmp_path / "other/tickets-train.csv").read_bytes()
    for layout in ("folder", "long-sequence"):
        for file in (home / "data" / layout / "train").iterdir():
            splits = [
                json.loads((home / "data" / layout / split / file.name).read_text()) for split in ("train", "test")
            ]
            train, test = ({row["input"] for row in rows} for rows in splits)
            assert (len(train), len(test), train & test) == (42, 8, set()), file.name


def test_data_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="only 120 different texts can be made for 'network', not 1000"):
        load_script("make_data.py")(["--out", str(tmp_path), "--train", "2900", "--test", "100"])


def test_matcher(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(home, "matcher.yaml", steps=18)
    assert "Learned 3 tasks, the last" in capsys.readouterr().out
    record = read_run(run)
    assert [task.name for task in record.tasks] == ["tickets", "reviews", "headlines"]
    assert [sorted(row.scores) for row in record.scores.rows] == [["headlines", "reviews", "tickets"]] * 4
    # A merge is forced at step 16 at the latest; the first task has nothing to rehearse.
    assert {merge.task for merge in record.merges} == {"reviews", "headlines"}
    assert [task.memory.examples for task in record.tasks] == [4, 4, 4]
    assert [task.train_examples for task in record.tasks] == [42, 42, 42]
    assert (run / "report.html").stat().st_size > 10_000
    answers = ask(run, "tickets", ["The printer does not switch on", "We paid for ten seats"], capsys)
    assert {answer["answer"] for answer in answers} <= {"network", "billing", "hardware"}
    assert all(merge.norm_new > 0 for merge in record.merges)
    assert [score.n for score in record.scores.rows[-1].scores.values()] == [8, 8, 8]


def test_seq2seq(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(home, "seq2seq.yaml", steps=18, max_input=48, max_target=4)
    record = read_run(run)
    assert record.scores.metrics == {"sentiment": "exact_match", "news": "exact_match", "subject-lines": "rouge_l"}
    assert [task.spec.mode for task in record.tasks] == ["generate", "rank", "generate"]
    assert [task.spec.labels is None for task in record.tasks] == [False, False, True]
    last = [[merge for merge in record.merges if merge.task == name][-1] for name in ("news", "subject-lines")]
    assert [(merge.cause, merge.step) for merge in last] == [("end", 18), ("end", 18)]
    assert {(merge.cause, merge.rehearsal_steps) for merge in record.merges} == {("forced", 4), ("end", 0)}
    assert all(len(row.scores) == 3 for row in record.scores.rows)
    (answer,) = ask(run, "news", ["The marathon surprises experts on Monday"], capsys)
    assert answer["answer"] in {"World", "Sports", "Business", "Science or Technology"}


def test_causal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(home, "causal.yaml", steps=16, max_target=12)
    record = read_run(run)
    assert record.info.config["resolved"]["lora_targets"] == ["q_proj", "v_proj"]
    assert record.scores.metrics == {"claims": "accuracy", "dates": "exact_match"}
    assert [task.memory.examples for task in record.tasks] == [8, 8]
    assert record.merges
    assert {merge.task for merge in record.merges} == {"dates"}
    claims = record.tasks[0]
    assert "{premise}" in claims.spec.prompt
    (answer,) = ask(run, "dates", ["May 4, 2024"], capsys)
    assert 0 <= answer["score"] <= 1


def test_chat(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(home, "chat.yaml", steps=2, max_target=6)
    record = read_run(run)
    assert record.scores.metrics == {"support": "rouge_l", "digits": "exact_match"}
    assert "support-train.jsonl: read as format: messages" in record.tasks[0].remarks[0]
    assert "digits-train.json: read as format: alpaca" in record.tasks[1].remarks[0]
    assert record.tasks[0].truncated == {"train_answers": 42, "test_answers": 8}
    kept = (run / "tasks" / "01-support" / "memory.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["messages"]) for line in kept] == [5] * 8
    (answer,) = ask(run, "support", ["My laptop does not switch on."], capsys)
    assert 0 <= answer["score"] <= 1


def test_builtin_long_sequence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BUILTIN["long-sequence-1"]
    assert len(whole.tasks) == 15  # that all of them are found is tested with --plan (tests/cli/test_reproduce.py)
    kept = tuple(name for name in whole.tasks if name in ("copa", "rte", "dbpedia", "yahoo"))
    monkeypatch.setitem(BUILTIN, "long-sequence-1", replace(whole, tasks=kept))
    run = tiny_run(home, "builtin-long-sequence.yaml", steps=1, max_input=32, max_target=8, warmup=0)
    record = read_run(run)
    assert [task.name for task in record.tasks] == list(kept)
    assert set(record.scores.metrics.values()) == {"exact_match"}
    # future: false: a task's scores begin with the row before it was learned; row 0 is measured later for all of them.
    assert [len(row.scores) for row in record.scores.rows] == [4, 2, 3, 4, 4]
    labels = {task.name: len(task.spec.labels or []) for task in record.tasks}
    assert labels["dbpedia"] == 14
    assert labels["yahoo"] == 10
    # 2 % of 42 texts is none; one of each label is kept all the same.
    assert {task.name: task.memory.examples for task in record.tasks} == labels


def test_study(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merganser.study.local.Popen", ForkedServer)
    values = yaml.safe_load((EXAMPLES / "studies" / "first.yaml").read_text(encoding="utf-8"))
    whole = make_study(values, "first.yaml", EXAMPLES / "studies")
    assert len(whole.cells) == (1 + 3 + 1 + 1 + 1) * 2 * 3
    assert len(whole.runs) == len(whole.cells) - 3  # joint training serves both orders
    values["model"] |= {"name": str(home / "matcher"), "precision": "fp32"}
    values["training"] = {"steps": 2, "batch": 8, "learning_rate": 0.01, "max_input": 64}
    values |= {"orders": values["orders"][:1], "seeds": 1}
    values["methods"]["replay"]["grid"]["method"]["batch"] = [2]
    del values["methods"]["aim-large-memory"]
    (home / "studies").mkdir()
    monkeypatch.chdir(home / "studies")
    result = merganser.study(values, "out")
    assert result.complete
    assert {record.method for record in result.records} == set(values["methods"])


def test_five_lines_and_the_replay_of_its_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "runs" / "five-lines"
    arguments = ["--run", str(run), "--model", str(home / "matcher"), "--data", str(home / "data"), "--steps", "20"]
    arguments += ["--precision", "fp32"]
    five_lines = load_script("five_lines.py")
    five_lines(arguments)
    printed = capsys.readouterr().out
    assert "Scores of tickets, reviews" in printed
    assert re.search(r"The monitor has a cracked case\. -> (network|billing|hardware) \(\d+%\)", printed)
    record = read_run(run)
    assert len(record.scores.rows) == 3
    five_lines(arguments)
    assert capsys.readouterr().out.count("was learned in an earlier call") == 2
    assert read_run(run).tasks == record.tasks

    merges = record.merges
    ledger = [merge.step for merge in merges]
    replayed = load_script("replay_controller.py")
    as_it_was, never = replayed([str(run), "--task", "reviews", "--threshold-factor", "1000"])
    assert [merge.step for merge in as_it_was] == ledger
    assert [merge.weight_new for merge in as_it_was] == [merge.weight_new for merge in merges]
    # No loss reaches a thousand times its mean: a merge is forced after twice the interval.
    assert [(merge.step, merge.cause) for merge in never] == [(16, "forced"), (20, "end")]
    assert "the replay equals the ledger" in capsys.readouterr().out
    # Every loss reaches a thousandth of it: armed by the probes of steps 1 to 6, two alarms are raised by step 8.
    _, always = replayed([str(run), "--task", "reviews", "--threshold-factor", "0.001"])
    assert [(merge.step, merge.cause, merge.alarms) for merge in always[:-1]] == [(8, "due", 2), (16, "due", 2)]


def test_replay_refuses_a_run_or_a_task_without_merges(home: Path, tmp_path: Path) -> None:
    replayed = load_script("replay_controller.py")
    with pytest.raises(InputError, match="There is no run"):
        replayed([str(tmp_path)])
    arguments = ["--model", str(home / "matcher"), "--data", str(home / "data"), "--steps", "2"]
    arguments += ["--precision", "fp32"]
    load_script("five_lines.py")(["--run", str(tmp_path / "short"), *arguments])
    with pytest.raises(InputError, match="made no merge"):
        replayed([str(tmp_path / "short"), "--task", "tickets"])


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_own_trainer(kind: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_trainer = load_script("own_trainer.py")
    aim = own_trainer(["--kind", kind, "--model", str(home / kind), "--data", str(home / "data"), "--steps", "16"])
    assert [merge.step for merge in aim.merges][-1] <= 16
    assert aim.cost.examples_rehearsed == 8 * sum(merge.rehearsal_steps for merge in aim.merges) > 0
    assert [signal.step for signal in aim.signals] == list(range(1, 17))
    printed = capsys.readouterr().out
    assert printed.count("merge after step") == len(aim.merges)
    assert len(re.findall(r"loss on (?:dates|reviews): \d+\.\d{3} before reviews were learned, \d", printed)) == 2


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_sft_trainer_interrupted_and_resumed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft_trainer = load_script("sft_trainer.py")
    whole, run = tmp_path / "whole", tmp_path / "run"

    def arguments(out: Path, *more: str) -> list[str]:
        given = ["--model", str(home / "causal"), "--data", str(home / "data"), "--out", str(out)]
        return [*given, "--steps", "18", "--save-steps", "9", *more]  # two intervals of 8 and some: a merge in any case

    aim = sft_trainer(arguments(whole))
    assert aim.merges
    assert capsys.readouterr().out.count("merge after step") == len(aim.merges)
    shutil.copytree(whole, run)
    shutil.rmtree(run / "reviews" / "checkpoint-18")  # as if interrupted in between
    again = sft_trainer(arguments(run, "--resume"))
    assert again.merges == aim.merges
    last = "reviews/checkpoint-18/adapter_model.safetensors"
    assert (run / last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_dpo_trainer(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(home / "causal"), "--data", str(home / "data"), "--out", str(tmp_path), "--steps", "18"]
    aim = load_script("dpo_trainer.py")(given)
    assert capsys.readouterr().out.count("merge after step") == len(aim.merges) > 0
    assert aim.merges[0].step < 18  # after the last one the learning rate is 0
    assert aim.merges[0].norm_old > 0


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_grpo_trainer(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", str(home / "causal"), "--data", str(home / "data"), "--out", str(tmp_path), "--steps", "6"]
    aim = load_script("grpo_trainer.py")([*given, "--tokens", "3", "--remembered", "4", "--interval", "2"])
    assert capsys.readouterr().out.count("merge after step") == len(aim.merges) > 0
    assert aim.merges[0].norm_old > 0
    assert all(0 <= merge.loss_old_after <= 1 for merge in aim.merges)


def test_own_trainer_without_merging(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_trainer = load_script("own_trainer.py")
    arguments = ["--model", str(home / "causal"), "--data", str(home / "data"), "--steps", "2", "--without"]
    assert own_trainer(arguments) is None
    assert "merge after" not in capsys.readouterr().out


def test_fashion(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Pretrains with the project's script and learns the example, on grey squares in place of clothes."""
    data = home / "data" / "fashion-mnist"
    data.mkdir()
    for part, number in (("train", 400), ("t10k", 60)):
        labels = np.arange(number) % 10
        images = np.ones((number, 28, 28)) * (25 * labels[:, None, None] + 10)
        (data / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (data / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    script = EXAMPLES.parent / "scripts" / "pretrain_vit.py"
    sizes = ["--width", "16", "--layers", "1", "--epochs", "8", "--batch", "16", "--learning-rate", "0.01"]
    monkeypatch.setattr("sys.argv", [str(script), "--data", str(data), "--out", str(home / "vit"), *sizes])
    runpy.run_path(str(script), run_name="__main__")
    facts = json.loads((home / "vit" / "pretraining.json").read_text())
    assert facts["classes"] == ["T-shirt", "trouser", "pullover", "dress", "coat"]
    assert facts["test_accuracy"] > 0.5
    run = tiny_run(home, "fashion.yaml", steps=4, model="vit")
    record = read_run(run)
    assert [task.spec.labels for task in record.tasks] == [("ankle boot", "bag"), ("shirt", "sneaker"), ("sandal",)]
    sizes = [(task.train_examples, task.dev_examples, task.test_examples) for task in record.tasks]
    assert sizes == [(72, 8, 12), (72, 8, 12), (36, 4, 6)]
    assert "Learned 3 tasks, the last" in capsys.readouterr().out


def test_the_protocol_of_every_built_in_set_of_images() -> None:
    """The example with the changes of the table in docs/streams.md; together they name every set."""
    page = (EXAMPLES.parent / "docs" / "streams.md").read_text(encoding="utf-8")
    seen = []
    for line in re.findall(r"^\| `(?:cifar100|imagenet-r|cub200|cars)-.*", page, re.MULTILINE):
        names, epochs, prompt = (cell.strip() for cell in line.strip("|").split("|"))
        first, *rest = re.findall(r"`([\w-]+)`", names)
        for name in [first, *(first.rpartition("-")[0] + number for number in rest)]:
            seen.append(name)
            values = yaml.safe_load((EXAMPLES / "builtin-cifar100.yaml").read_text(encoding="utf-8"))
            values["stream"]["name"] = name
            values["training"]["epochs"] = int(epochs)
            values["model"]["label_prompt"] = prompt.strip("`")
            config = RunConfig.model_validate(values)
            training = config.training
            assert training.epochs == IMAGE_SETS[name].epochs == (30 if name.startswith(("cub", "cars")) else 10)
            assert (training.learning_rate, training.weight_decay, training.batch) == (1e-5, 0.1, 128)
            assert (training.warmup, config.model.lora, config.method.name) == (500, None, "magmax")
            assert config.model.name == "openai/clip-vit-base-patch16"
            assert IMAGE_SETS[name].tasks == int(name.rpartition("-")[2])
    assert seen == list(IMAGE_SETS)


def test_builtin_cifar100(home: Path) -> None:
    for part, number in (("train", 2), ("test", 1)):
        for label in range(100):
            folder = home / "images" / part / f"class {label:02d}"
            folder.mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (8, 8), (2 * label, 5 * i, 0)).save(folder / f"{i}.png")
    tiny_clip(home / "clip")
    record = read_run(tiny_run(home, "builtin-cifar100.yaml", steps=1, model="clip"))
    assert [len(task.spec.labels or ()) for task in record.tasks] == [10] * 10
    assert len({label for task in record.tasks for label in task.spec.labels or ()}) == 100
    assert record.tasks[9].name == "cifar100-10-10"
