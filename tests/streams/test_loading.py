"""Options to tasks: labels, prompts, limits and every refusal before work starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.streams.answers import AnswerSpec
from merganser.streams.checks import check_names, check_task
from merganser.streams.loading import load_stream, load_task
from merganser.streams.options import StreamOptions
from merganser.streams.task import Example, Task
from merganser.streams.task_options import TaskOptions

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the AimMerging data of ../shared/data is not there")


def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"id": f"r{i}", "input": text, "output": label} for i, (text, label) in enumerate(pairs)]


TRAIN = rows(("good film", "pos"), ("bad film", "neg"), ("fine film", "pos"), ("awful film", "neg "))
TEST = rows(("great", "pos"), ("poor", "neg"))


def put(path: Path, content: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(content)), encoding="utf-8")


def task(
    folder: Path, train: Sequence[dict[str, Any]] = TRAIN, test: Sequence[dict[str, Any]] = TEST, **more: Any
) -> Task:
    put(folder / "train.json", train)
    put(folder / "test.json", test)
    return load_task(TaskOptions(name="films", train="train.json", test="test.json", **more), folder)


def layout(folder: Path, *names: str, train: Sequence[dict[str, Any]] = TRAIN) -> None:
    for name in names:
        put(folder / "train" / f"{name}_T5.json", train)
        put(folder / "dev" / f"{name}_T5.json", TEST)
        put(folder / "test" / f"{name}_T5.json", TEST)


def test_a_classification_task(tmp_path: Path) -> None:
    films = task(tmp_path)
    assert films.spec.labels == ("neg", "pos")
    assert (films.spec.metric, films.spec.mode) == ("accuracy", "generate")
    assert films.train[3] == Example("awful film", "neg", "r3"), "white space around the answer is removed"
    assert films.dev == []
    digest = hashlib.sha256((tmp_path / "train.json").read_bytes()).hexdigest()
    assert films.source["train"] == f"train.json sha256:{digest}"
    assert str(tmp_path) not in repr(films.source)


def test_label_settings(tmp_path: Path) -> None:
    once = rows(("a", "x"), ("b", "x"), ("c", "y"))
    test = rows(("d", "y"))
    free = task(tmp_path, once, test)
    assert (free.spec.labels, free.spec.metric) == (None, "rouge_l"), "an output that stands once: free text"
    assert task(tmp_path, once, test, labels="train").spec.labels == ("x", "y")
    assert task(tmp_path, TRAIN, labels=None).spec.metric == "rouge_l"
    assert task(tmp_path, labels=["pos", "neg"]).spec.labels == ("pos", "neg")
    mapped = task(tmp_path, labels={"pos": "a good film", "neg": "a bad film"}, answer="rank")
    assert mapped.spec.labels == ("pos", "neg")
    assert mapped.spec.text_of("neg") == "a bad film"
    assert task(tmp_path).spec.text_of("neg") == "neg"
    assert task(tmp_path, metric="f1").spec.metric == "f1"


def test_fields_and_prompts(tmp_path: Path) -> None:
    train = [{"s1": f"one {i}", "s2": "two", "label": i % 2} for i in range(4)]
    joined = task(tmp_path, train, train, input=["s1", "s2"], output="label")
    assert joined.train[1].input == "one 1\ntwo"
    assert joined.spec.labels == ("0", "1")
    asked = task(tmp_path, train, train, prompt="{s2} after {s1}?", output="label")
    assert asked.train[0].input == "two after one 0?"
    both = task(tmp_path, train, train, input="s1", prompt="<{input}> {s2}", output="label")
    assert both.train[0].input == "<one 0> two"
    assert both.spec.prompt == "<{input}> {s2}"


@pytest.mark.parametrize(
    ("train", "test", "more", "cause"),
    [
        (
            TRAIN,
            rows(("meh", "neutral")),
            {},
            "test.json, row 1: the answer is not one of the labels (neg, pos): 'neutral'",
        ),
        (TRAIN, rows(("meh", "pso")), {}, "Did you mean 'pos'?"),
        (
            TRAIN,
            rows(("m", "mid")),
            {"labels": ["pos", "neg", "mid"]},
            "test.json, row 1: the answer is a label that no training text has: 'mid'",
        ),
        (
            TRAIN,
            TEST,
            {"labels": ["pos", "bad"]},
            "train.json: 2 of 4 rows cannot be used: 2 × the answer is not one of the labels (pos, bad) (first",
        ),
        (rows(("a", "x"), ("b", "y")), TEST, {"answer": "rank"}, "answer mode 'rank' needs a label set"),
        (rows(("a", "x"), ("b", "y")), TEST, {"metric": "accuracy"}, "metric 'accuracy' needs a label set"),
        (TRAIN, TEST, {"input": "text"}, "train.json, row 1: there is no field 'text'; the fields are 'id', 'input'"),
        (TRAIN, TEST, {"output": "outptu"}, "Did you mean 'output'?"),
        (TRAIN, TEST, {"prompt": "{premise}"}, "there is no field 'premise'"),
        (TRAIN, rows(("  ", "pos")), {}, "test.json, row 1: field 'input' is empty"),
        (TRAIN, rows(("x", "")), {}, "test.json, row 1: field 'output' is empty"),
        ([], TEST, {}, "train.json: the file has no rows"),
        (TRAIN, TEST, {"dev": "dev.json"}, "dev.json: there is no such file"),
    ],
)
def test_bad_data_is_refused(
    tmp_path: Path, train: list[dict[str, str]], test: list[dict[str, str]], more: dict[str, Any], cause: str
) -> None:
    with pytest.raises(InputError) as caught:
        task(tmp_path, train, test, **more)
    assert cause in str(caught.value)


def test_limits_are_drawn_with_their_own_seed(tmp_path: Path) -> None:
    many = rows(*((f"text {i}", "rare" if i in (7, 60) else "common") for i in range(100)))
    whole = task(tmp_path, many, many)
    limited = task(tmp_path, many, many, limit=10, limit_test=5)
    assert (len(limited.train), len(limited.test)) == (10, 5)
    assert "rare" in {example.output for example in limited.train}, "every label is there"
    positions = [whole.train.index(example) for example in limited.train]
    assert positions == sorted(positions), "in file order"
    assert positions != list(range(10)), "not simply the first"
    assert task(tmp_path, many, many, limit=10, limit_test=5).fingerprint() == limited.fingerprint()
    assert task(tmp_path, many, many, limit=10, limit_seed=1).train != limited.train
    assert limited.source["train_limit"] == "10 of 100 texts, drawn with seed 0"
    assert "train_limit" not in task(tmp_path, many, many, limit=100).source


def test_a_limit_below_the_number_of_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a label that no training text has.*raise the limit"):
        task(tmp_path, limit=1)


def test_a_folder_in_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout(tmp_path / "data", "agnews", "task363", "task181", "mine")
    options = StreamOptions.model_validate(
        {
            "folder": "data",
            "order": ["task363", "mine", "agnews", "task181"],
            "limit": 3,
            "overrides": {
                "agnews": {"labels": {"pos": "positive", "neg": "negative"}, "limit": 4},
                "mine": {"metric": "f1", "prompt": "Film: {input}"},
            },
        }
    )
    monkeypatch.chdir(tmp_path)
    for base in (tmp_path, Path(".")):
        stream = load_stream(options, base)
        assert stream.name == "data"
        assert [task.name for task in stream.tasks] == ["task363", "mine", "agnews", "task181"]
        assert [task.spec.metric for task in stream.tasks] == ["exact_match", "f1", "exact_match", "rouge_l"]
        assert [task.spec.labels for task in stream.tasks] == [("neg", "pos"), ("neg", "pos"), ("pos", "neg"), None]
        assert [len(task.train) for task in stream.tasks] == [3, 3, 4, 3]
        assert stream.tasks[1].train[0].input.startswith("Film: ")
        assert stream.tasks[2].spec.text_of("neg") == "negative"
        assert stream.tasks[0].spec.mode == "generate"
        assert len(stream.tasks[0].dev) == 2


def test_a_folder_without_dev(tmp_path: Path) -> None:
    layout(tmp_path, "agnews")
    (tmp_path / "dev" / "agnews_T5.json").unlink()
    (stream_task,) = load_stream(StreamOptions(folder=".", order=["agnews"]), tmp_path).tasks
    assert stream_task.dev == []


def test_missing_folders_and_tasks(tmp_path: Path) -> None:
    layout(tmp_path / "data", "agnews", "amazon")
    for values, cause in (
        ({"folder": "dat", "order": ["agnews"]}, "There is no folder dat."),
        ({"folder": "data/train", "order": ["agnews"]}, "data/train has no subfolder train/"),
        (
            {"folder": "data", "order": ["agnew"]},
            "no file agnew_T5.json; it has agnews, amazon. Did you mean 'agnews'?",
        ),
        (
            {"name": "standard-cl-1", "folder": "data"},
            "standard-cl-1 needs 4 tasks; data/train has no file dbpedia_T5.json (nor those of yahoo)",
        ),
    ):
        with pytest.raises(InputError) as caught:
            load_stream(StreamOptions.model_validate(values), tmp_path)
        assert cause in str(caught.value)


def test_a_list_of_tasks(tmp_path: Path) -> None:
    put(tmp_path / "a.json", TRAIN)
    tasks = [{"name": "one", "train": "a.json", "limit": 2}, {"name": "two", "train": "a.json"}]
    stream = load_stream(StreamOptions.model_validate({"tasks": tasks, "limit": 3, "name": "two films"}), tmp_path)
    assert stream.name == "two films"
    assert [(task.name, len(task.train), task.spec.metric) for task in stream.tasks] == [
        ("one", 2, "accuracy"),
        ("two", 3, "accuracy"),
    ]


def test_overrides_that_contradict_the_task(tmp_path: Path) -> None:
    tasks = [{"name": "one", "train": "a.json", "answer": "rank"}]
    options = StreamOptions.model_validate({"tasks": tasks, "overrides": {"one": {"labels": None}}})
    with pytest.raises(InputError, match="Task 'one' with its overrides: answer 'rank' needs labels"):
        load_stream(options, tmp_path)


GOOD = Task(name="t", train=[Example("a", "x"), Example("b", "y")], spec=AnswerSpec(("x", "y"), metric="accuracy"))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"name": "a/b"}, "cannot name a folder"),
        (
            {"train": [Example("a", "x"), Example("\ud83d", "y")]},
            "train text 2: the input is no valid Unicode: it holds",
        ),
        ({"test": [Example("a", "x", "\udce9")]}, "test text 1: the id is no valid Unicode: it holds the byte 0xe9"),
        ({"test": [Example(3, "x"), Example("b", "")]}, "1 × the input is a int, not a text (first: test text 1); 1 ×"),
        ({"train": []}, "has no training texts"),
        ({"train": [Example("a", " ")]}, "train text 1: the output is empty"),
        ({"dev": [Example("", "x")]}, "dev text 1: the input is empty"),
        ({"spec": AnswerSpec(("x", "y"), {"x": "y"})}, "two labels have the same text 'y'"),
        ({"spec": AnswerSpec(("x",))}, "train text 2: the answer is not one of the labels (x): 'y'"),
        (
            {"spec": AnswerSpec(("x", "y", "z")), "dev": [Example("c", "z")]},
            "dev text 1: the answer is a label that no training text has: 'z'",
        ),
    ],
)
def test_tasks_made_in_python_are_checked(change: dict[str, Any], cause: str) -> None:
    check_task(GOOD)
    with pytest.raises(InputError) as caught:
        check_task(replace(GOOD, **change))
    assert cause in str(caught.value)


def test_names_twice() -> None:
    check_names(["a", "b"])
    with pytest.raises(InputError, match="Task 'a' occurs twice"):
        check_names(["a", "b", "a"])


def test_the_fingerprint_sees_what_influences_a_result() -> None:
    assert replace(GOOD, source={"train": "elsewhere"}).fingerprint() == GOOD.fingerprint()
    for change in (
        {"spec": replace(GOOD.spec, labels=("y", "x"))},
        {"spec": replace(GOOD.spec, prompt="{input}!")},
        {"spec": replace(GOOD.spec, label_texts={"x": "ex"})},
        {"spec": replace(GOOD.spec, mode="rank")},
        {"spec": replace(GOOD.spec, synonyms={"ex": "x"})},
        {"spec": replace(GOOD.spec, metric="exact_match")},
        {"train": [Example("b", "y"), Example("a", "x")]},
        {"dev": [Example("a", "x")]},
        {"test": [Example("a", "x")]},
    ):
        assert replace(GOOD, **change).fingerprint() != GOOD.fingerprint()


@needs_data
def test_the_real_standard_benchmark() -> None:
    stream = load_stream(StreamOptions(name="standard-cl-3", folder="data_longsequence", limit=500), DATA)
    assert [task.name for task in stream.tasks] == ["yahoo", "amazon", "agnews", "dbpedia"]
    assert [len(task.spec.labels or ()) for task in stream.tasks] == [10, 5, 4, 14]
    assert [(len(task.train), len(task.test)) for task in stream.tasks] == [
        (500, 250),
        (500, 2500),
        (500, 2000),
        (500, 250),
    ]
    assert {task.spec.metric for task in stream.tasks} == {"exact_match"}


@needs_data
def test_the_real_superni_tasks() -> None:
    order = ["task363", "task181", "task1687", "task639"]
    stream = load_stream(StreamOptions(folder="data_superni", order=order), DATA)
    assert [task.spec.labels for task in stream.tasks] == [("N", "P"), None, ("n", "p"), None]
    assert [task.spec.metric for task in stream.tasks] == ["exact_match", "rouge_l", "exact_match", "rouge_l"]
    assert [len(task.train) for task in stream.tasks] == [1000, 338, 1000, 142]


@needs_data
def test_a_built_in_order_of_which_tasks_are_absent() -> None:
    with pytest.raises(
        InputError, match=r"long-sequence-1 needs 15 tasks; .* no file mnli_T5\.json \(nor those of wic,"
    ):
        load_stream(StreamOptions(name="long-sequence-1", folder="data_longsequence"), DATA)
