"""Tasks that are watched: scored after every row, kept with the run, never learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from merganser.config import load_config
from merganser.errors import InputError
from merganser.events import Evaluating, Event
from merganser.learner import Learner
from merganser.learner.learn_task import RefusedRow
from merganser.runs import RunDirectory
from merganser.runs.verification import verify
from merganser.streams.loading import load_stream, load_task
from merganser.streams.options import StreamOptions
from merganser.streams.task import Example, Task
from merganser.streams.task_options import TaskOptions
from merganser.streams.watch import WatchedTask, load_watched
from tests.learner import toys
from tests.learner.toys import Command, contents, read_json, results, values_of

WATCH = [
    {"name": "safety", "test": "truth-test.json", "group": "safety"},
    {"name": "manners", "test": "truth.json", "labels": ["right", "wrong"], "limit_test": 6},
]


def learn(folder: Path, run: Path, listener: object = None) -> None:
    config = load_config(folder / "stream.yaml")
    assert config.stream is not None
    more = {} if listener is None else {"listener": listener}
    with Learner.of_config(run, config, **more) as learner:  # type: ignore[arg-type]
        learner.watch(*load_watched(config.stream, folder))
        learner.learn_stream(load_stream(config.stream, folder).tasks)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``stream.yaml`` and a finished ``run`` of mood and topic that watches two tasks."""
    folder = tmp_path_factory.mktemp("watched")
    toys.write_stream(folder, stream={"watch": WATCH}, training={"steps": 2})
    learn(folder, folder / "run")
    return folder


@pytest.fixture
def merganser(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def run(watched: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(watched, tmp_path / "in")) / "run"


def test_watched_tasks_are_columns_of_every_row(watched: Path) -> None:
    run = watched / "run"
    scores = read_json(run / "scores.json")
    assert scores["tasks"] == ["mood", "topic", "safety", "manners"]
    assert [(each["name"], each["group"]) for each in scores["watched"]] == [("safety", "safety"), ("manners", None)]
    rows = values_of(run)
    assert all(set(row) == {"mood", "topic", "safety", "manners"} for row in rows)
    assert [row["learned"] for row in scores["rows"]] == [[], ["mood"], ["topic"]]
    metrics = {metric["name"]: metric["value"] for metric in scores["summary"]}
    assert metrics["OP"] == pytest.approx((rows[2]["mood"] + rows[2]["topic"]) / 2)
    assert metrics["BWT"] == pytest.approx(rows[2]["mood"] - rows[1]["mood"])
    changes = {name: rows[2][name] - rows[0][name] for name in ("safety", "manners")}
    assert metrics["retained"] == pytest.approx(sum(changes.values()) / 2)
    assert metrics["retained (safety)"] == pytest.approx(changes["safety"])
    assert metrics["win rate (safety)"] - metrics["loss rate (safety)"] == pytest.approx(changes["safety"])
    assert "retained (general)" not in metrics
    kept = [json.loads(line) for row in range(3) for line in answers(run, row)]
    assert {(each["row"], each["task"]) for each in kept} >= {(row, "safety") for row in range(3)}
    assert {len(each["scores"]) for each in kept if each["task"] == "manners"} == {6}


def answers(run: Path, row: int) -> list[str]:
    (folder,) = run.glob(f"tasks/{row:02d}-*")
    return (folder / "answers.jsonl").read_text().splitlines()


def test_what_a_stream_says_of_rows_is_said_of_those_of_watched_tasks(tmp_path: Path) -> None:
    toys.write_rows(tmp_path / "truth.json", [{"input": "", "output": "right"}, *toys.rows("truth", 6)])
    watch = {"watch": [{"name": "safety", "test": "truth.json"}], "limit_test": 4}
    with pytest.raises(InputError, match="field 'input' is empty"):
        load_watched(StreamOptions.model_validate(watch), tmp_path)
    (task,) = load_watched(StreamOptions.model_validate({**watch, "on_bad_rows": "skip"}), tmp_path)
    assert (len(task.test), len(task.remarks)) == (4, 1)


def test_nothing_of_them_is_learned(watched: Path, tmp_path: Path) -> None:
    """Weights, memory and merges are those of the same stream without watched tasks."""
    run = watched / "run"
    toys.write_stream(tmp_path, training={"steps": 2})
    learn(tmp_path, tmp_path / "run")
    for file in (tmp_path / "run").glob("tasks/*/*"):
        if file.name in ("adapter", "memory.jsonl", "merges.jsonl", "test.jsonl"):
            same = run / file.relative_to(tmp_path / "run")
            assert contents(same) == contents(file) if file.is_dir() else same.read_bytes() == file.read_bytes()
    memory = "".join((row / "memory.jsonl").read_text() for row in sorted(run.glob("tasks/*"))[1:])
    assert "two and two" not in memory
    assert {json.loads(line)["task"] for line in memory.splitlines()} == {"mood", "topic"}
    record = read_json(run / "tasks" / "00-start" / "row.json")
    assert record["lines"]["watch"] == 8 + 6
    assert [(each["name"], each["test_examples"]) for each in record["watched"]] == [("safety", 8), ("manners", 6)]
    assert set(record["watched"][0]["source"]) == {"test"}


def test_a_run_that_is_interrupted_while_it_scores_resumes_bit_for_bit(watched: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Evaluating) and event.task == "manners" and list(run.glob("tasks/02-topic.partial")):
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        learn(watched, run, stop)
    assert not (run / "tasks" / "02-topic").exists()
    learn(watched, run)
    assert results(run) == results(watched / "run")
    for name in ("00-start/watch.jsonl", "00-start/answers.jsonl", "02-topic/answers.jsonl"):
        assert (run / "tasks" / name).read_bytes() == (watched / "run" / "tasks" / name).read_bytes()


def test_check_compares_watched_tasks(run: Path, merganser: Command) -> None:
    found = json.loads(merganser("check", run, "--row", "mood", "--json").out)  # against row 0
    assert [(each["task"], each["watched"], each["group"]) for each in found["tasks"]] == [
        ("safety", True, "safety"),
        ("manners", True, None),
        ("mood", False, None),
    ]
    done = merganser("check", run, "--max-drop-of", "safety=0", "--max-drop-of", "manners=5", "--against", "best")
    assert "safety *" in done.out
    assert "*: watched, never learned" in done.out
    bounds = {each["task"]: each["bound"] for each in json.loads(merganser("check", run, "--max-drop-of", "safety=0",
              "--json").out)["tasks"]}  # fmt: skip
    assert bounds == {"mood": 0.02, "safety": 0.0, "manners": 0.02, "topic": None}
    other = json.loads(merganser("check", run, "--against", run, "--json").out)
    assert {each["task"]: each["change"] for each in other["tasks"]} == dict.fromkeys(bounds, 0.0)
    assert "Did you mean 'safety'?" in merganser("check", run, "--max-drop-of", "safty=1").error


def test_verify_undo_evaluate_card_and_page(run: Path, merganser: Command) -> None:
    assert verify(RunDirectory.open(run)).damaged == []
    measured = json.loads(merganser("evaluate", run, "--json").out)
    assert {name: score["value"] for name, score in measured.items()} == values_of(run)[-1]
    shown = merganser("evaluate", run).out
    assert "safety (watched)" in shown
    last = values_of(run)[-1]
    assert f" {50 * (last['mood'] + last['topic']):.1f} " in shown.splitlines()[-3]  # OP is of learned tasks
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "| safety (safety) |" in card
    assert merganser("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('class="watched"') >= 2
    assert merganser("undo", run).code == 0
    assert [set(row) for row in values_of(run)] == [{"mood", "topic", "safety", "manners"}] * 2
    toys.flip_bit(run / "tasks" / "00-start" / "watch.jsonl", b'"input": "')
    assert [found.file for found in verify(RunDirectory.open(run)).damaged] == ["tasks/00-start/watch.jsonl"]


def truth(folder: Path) -> Task:
    options = TaskOptions(name="truth", train=str(folder / "truth.json"), test=str(folder / "truth-test.json"))
    return load_task(options, folder)


def test_a_refused_row_and_a_task_that_is_watched_later(run: Path, tmp_path: Path) -> None:
    """A row that is not accepted leaves no trace; the next one also scores what is watched from then on."""
    late = WatchedTask("late", test=[Example("the bank", "sport"), Example("the match", "business")], group="general")
    before = contents(run)
    seen: list[int] = []
    with Learner.open(run) as learner:
        with pytest.raises(RefusedRow, match="The check refused 'truth'"):
            learner.learn(truth(run.parent), accept=lambda rows: seen.append(len(rows)) is not None)
        assert (contents(run), seen) == (before, [4])
        learner.watch(WatchedTask("late", test=late.test, spec=learner.session.known_tasks()["topic"].spec))
        learner.learn(truth(run.parent), accept=lambda rows: True)
        assert learner.learned == ["mood", "topic", "truth"]
        matrix = learner.scores
    assert list(matrix.watched) == ["safety", "manners", "late"]
    assert [matrix.score(row, "late") is not None for row in range(4)] == [True, False, True, True]
    assert read_json(run / "tasks" / "03-truth" / "row.json")["against_start"]["late"].keys() == {
        "wins",
        "ties",
        "losses",
    }
    with Learner.open(run, read_only=True) as learner:
        assert set(learner.session.watched()) == {"safety", "manners", "late"}
    assert verify(RunDirectory.open(run)).damaged == []


@pytest.fixture(scope="module")
def opened(watched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    """The run, open for changes that are all refused."""
    folder = tmp_path_factory.mktemp("opened")
    with Learner.open(shutil.copytree(watched / "run", folder / "run")) as learner:
        yield learner


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (WatchedTask("mood", test=[Example("a", "b")]), "Task 'mood' was learned"),
        (WatchedTask("safety", test=[Example("a", "b")]), "of watched task 'safety' are not those of this run"),
        (WatchedTask("empty"), "Watched task 'empty' has no test examples"),
        (WatchedTask("new", train=[Example("a", "b")], test=[Example("a", "b")]), "has examples to learn"),
        (WatchedTask("new", test=[Example("a", "b")]), "labels"),  # a matcher ranks them
    ],
)
def test_tasks_that_cannot_be_watched(task: WatchedTask, message: str, opened: Learner) -> None:
    with pytest.raises(InputError, match=message):
        opened.watch(task)
    assert opened.session.new_watched == {}


def test_a_watched_task_is_not_learned(opened: Learner) -> None:
    with pytest.raises(InputError, match="Task 'safety' is watched, and a watched task is never learned"):
        opened.learn(Task("safety", train=[Example("a", "b")]))
