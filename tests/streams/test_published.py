"""The built-in orders on files with the irregularities of the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.errors import InputError
from merganser.metrics.text import score_answers
from merganser.streams.answers import AnswerSpec
from merganser.streams.builtin import BUILTIN
from merganser.streams.loading import load_stream
from merganser.streams.options import StreamOptions

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the AimMerging data of ../shared/data is not there")

LABELS = {"task363": ("P", "N"), "task1687": ("p", "n"), "task875": ("joy", "anger")}
EMPTY_ROWS = (3, 4, 9, 12, 15, 20)
UNLABELLED_ROWS = (2, 5, 6, 11, 13, 17)


def rows(task: str, number: int, generation: bool) -> list[dict[str, str]]:
    labels = LABELS.get(task, ("yes", "no"))
    return [
        {"id": f"{task}{i}", "input": f"{task} {i}", "output": f"{task} answers {i}" if generation else labels[i % 2]}
        for i in range(number)
    ]


def put(folder: Path, split: str, task: str, content: list[dict[str, Any]]) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / split / f"{task}_T5.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files of all tasks: 20 training, 18 development and 4 test texts each."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("long-sequence-1", "superni-1"):
        for task in BUILTIN[name].tasks:
            generation = BUILTIN[name].kind(task) == "generation"
            train, dev, test = (rows(task, number, generation) for number in (20, 18, 4))
            if task == "mnli":
                for row in UNLABELLED_ROWS:
                    dev[row - 1]["output"] = "-"
            if task == "task511":
                for row in EMPTY_ROWS:
                    train[row - 1]["output"] = ""
            if task in ("task1572", "task748"):
                train[0]["output"] += " \n"
                test[1]["output"] = " " + test[1]["output"]
            for split, content in (("train", train), ("dev", dev), ("test", test)):
                put(folder, split, task, content)
    return folder


@pytest.mark.parametrize("name", list(BUILTIN))
def test_every_built_in_order_reads_the_published_irregularities(published: Path, name: str) -> None:
    stream = load_stream(StreamOptions(name=name, folder="."), published)
    assert [task.name for task in stream.tasks] == list(BUILTIN[name].tasks)
    sizes = {task.name: (len(task.train), len(task.dev), len(task.test)) for task in stream.tasks}
    assert {task: size for task, size in sizes.items() if size != (20, 18, 4)} == {
        task: size for task, size in (("mnli", (20, 12, 4)), ("task511", (14, 18, 4))) if task in sizes
    }
    remarks = {task.name: list(task.remarks) for task in stream.tasks if task.remarks}
    spaces = "white space around 1 of"
    expected = {
        "mnli": [
            "dev/mnli_T5.json: 6 of 18 rows skipped: 6 × the answer '-' marks a text without a label (first: row 2)"
        ],
        "task511": ["train/task511_T5.json: 6 of 20 rows skipped: 6 × field 'output' is empty (first: row 3)"],
        **{
            task: [
                f"train/{task}_T5.json: {spaces} 20 answers removed",
                f"test/{task}_T5.json: {spaces} 4 answers removed",
            ]
            for task in ("task1572", "task748")
        },
    }
    assert remarks == {task: lines for task, lines in expected.items() if task in sizes}


def test_a_person_may_refuse_them(published: Path) -> None:
    for values in ({"on_bad_rows": "refuse"}, {"overrides": {"mnli": {"on_bad_rows": "refuse"}}}):
        options = StreamOptions.model_validate({"name": "long-sequence-2", "folder": ".", **values})
        with pytest.raises(InputError, match="6 × the answer '-' marks a text without a label"):
            load_stream(options, published)


def test_other_irregularities_are_refused_and_the_known_ones_named_with_them(published: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(published / "train")
    (tmp_path / "test").symlink_to(published / "test")
    dev = rows("mnli", 8, False)
    dev[1]["output"], dev[3]["output"], dev[6]["output"] = "-", "maybe", ""
    put(tmp_path, "dev", "mnli", dev)
    options: dict[str, Any] = {"order": ["mnli", "cb"], "folder": "."}
    with pytest.raises(InputError) as caught:
        load_stream(StreamOptions.model_validate(options), tmp_path)
    assert caught.value.cause == (
        "dev/mnli_T5.json: 3 of 8 rows cannot be used: 1 × the answer '-' marks a text without a label (first: row 2); "
        "1 × the answer is not one of the labels (no, yes) (first: row 4, 'maybe'); "
        "1 × field 'output' is empty (first: row 7)."
    )
    assert (
        len(load_stream(StreamOptions.model_validate({**options, "on_bad_rows": "skip"}), tmp_path).tasks[0].dev) == 5
    )


@needs_data
def test_real_texts_with_these_irregularities(tmp_path: Path) -> None:
    """CommitmentBank has MNLI's labels; task181 is free text as task511 is."""
    for source, name, benchmark in (("cb", "mnli", "longsequence"), ("task181", "task511", "superni")):
        for split in ("train", "dev", "test"):
            content = json.loads((DATA / f"data_{benchmark}" / split / f"{source}_T5.json").read_text())
            if (name, split) == ("mnli", "dev"):
                content[1::9] = [{**row, "output": "-"} for row in content[1::9]]
            if (name, split) == ("task511", "train"):
                content[::60] = [{**row, "output": ""} for row in content[::60]]
            put(tmp_path, split, name, content)
    mnli, task511 = load_stream(StreamOptions(order=["mnli", "task511"], folder="."), tmp_path).tasks
    assert mnli.labels == ("contradiction", "entailment", "neutral")
    assert [len(mnli.train), len(mnli.dev), len(task511.train)] == [250, 56 - 7, 338 - 6]
    assert [remark.split(" (first")[0] for remark in (*mnli.remarks, *task511.remarks)] == [
        "dev/mnli_T5.json: 7 of 56 rows skipped: 7 × the answer '-' marks a text without a label",
        "train/task511_T5.json: 6 of 338 rows skipped: 6 × field 'output' is empty",
    ]


def score(spec: AnswerSpec, answers: list[str], references: list[str]) -> float:
    return score_answers(spec.metric, [spec.counts_as(answer) for answer in answers], references).value


def test_task363_counts_pos_and_neg(published: Path) -> None:
    order = ["task363", "task1687"]
    stream = load_stream(StreamOptions(order=order, folder=".", limit=20), published)
    task363, task1687 = (task.spec for task in stream.tasks)
    # As the released scoring: lower case, and a whole answer "pos" is "p"; "positive" is not.
    answers = ["POS", "pos", "NEG", "P", "n", "positive", "P POS", "neg"]
    references = ["P", "P", "N", "P", "N", "P", "P", "P"]

    def released(answer: str) -> str:
        return {"pos": "p", "neg": "n"}.get(answer.lower(), answer.lower())

    by_hand = np.mean([released(a) == r.lower() for a, r in zip(answers, references, strict=True)])
    assert score(task363, answers, references) == by_hand == 5 / 8
    assert score(task1687, ["POS", "p"], ["p", "p"]) == 0.5
    assert task363.labels == ("N", "P")


def test_task363_with_other_labels_has_no_synonyms(tmp_path: Path) -> None:
    content = [{"input": f"t {i}", "output": ("pos", "neg")[i % 2]} for i in range(4)]
    for split in ("train", "test"):
        put(tmp_path, split, "task363", content)
    (task,) = load_stream(StreamOptions(order=["task363"], folder="."), tmp_path).tasks
    assert score(task.spec, ["POS", "neg"], ["pos", "neg"]) == 1
