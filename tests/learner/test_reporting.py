"""A run in experiment trackers: one run of theirs per run directory, with steps that go on from task to task."""

from __future__ import annotations

import importlib.util
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from merganser import Learner
from merganser.config import check_config
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.learner import trackers
from merganser.learner.learn_task import RefusedRow
from merganser.learner.reporting import Reporting
from merganser.learner.trackers import TRACKERS, Tracker, check_trackers
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example, Task
from tests.learner import toys
from tests.learner.toys import Command, results

ALL = ["tensorboard", "mlflow", "trackio"]


def task(name: str) -> Task:
    train, test = ([Example(r["input"], r["output"]) for r in toys.rows(name, *size)] for size in ((12, 0), (8, 1)))
    return Task(name, train, test=test, spec=AnswerSpec(toys.LABELS[name], metric="accuracy"))


def sections(report_to: Any = (), **changes: Any) -> dict[str, Any]:
    training = {"report_to": report_to, "report_steps": 2, **changes}
    values = toys.settings(training=training)
    del values["stream"]
    return values


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that learned mood, was closed, and learned topic, reported to all trackers that are installed.

    Beside it is ``plain``, the same without trackers, and ``events``: what the listener of the first heard.
    """
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", (folder / "mlflow").as_uri())
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("MERGANSER_CACHE", str(folder / "cache"))
        for name, report_to in (("run", ALL), ("plain", [])):
            for number, learned in enumerate(("mood", "topic")):
                given = {} if number else sections(report_to)
                with Learner.open(folder / name, **given) as learner:
                    learner.learn(task(learned))
        yield folder


def test_training_is_the_same_with_trackers(tracked: Path) -> None:
    run, plain = results(tracked / "run"), results(tracked / "plain")
    assert list(run) == list(plain)
    assert [name for name in run if run[name] != plain[name]] == []


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """Name of a value -> step of the whole run -> value, from the records of the run; names as MLflow has them."""
    from merganser.runs import read_run

    record = read_run(folder / "run")
    values: dict[str, dict[int, float]] = {"loss": {}, "probe_loss": {}, "merge/weight_new": {}}
    for number, (name, signals) in enumerate(record.signals.items()):
        for last in range(1, 6, 2):
            step = 6 * number + last + 1
            two = signals[last - 1 : last + 1]
            values["loss"][step] = sum(signal.loss or 0 for signal in two) / 2
            probes = [signal.probe for signal in two if signal.probe is not None]
            if probes:
                values["probe_loss"][step] = sum(probes) / len(probes)
        values["merge/weight_new"] |= {6 * number + m.step: m.weight_new for m in record.merges if m.task == name}
    for number, row in enumerate(record.scores.rows):
        for name, score in row.scores.items():
            if number or name == "mood":  # topic was scored in row 0 when it came
                values.setdefault(f"eval_score/{name}", {})[6 * number] = score.value
    values["eval_score/topic"].pop(6, None)
    (overall,) = (metric.value for metric in record.scores.summary if metric.name == "OP")
    values["eval_OP"] = {12: overall or 0.0}
    assert len(values["merge/weight_new"]) > 1
    assert len(values["probe_loss"]) > 1
    return values


def compare(found: dict[str, dict[int, float]], folder: Path) -> None:
    for name, values in expected(folder).items():
        assert {step: found[name].get(step) for step in values} == pytest.approx(values, rel=1e-5), name
    assert sorted(found["loss"]) == [2, 4, 6, 8, 10, 12]
    assert found["learning_rate"][12] == pytest.approx(0.004)


def test_tensorboard(tracked: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "run" / "tensorboard"))
    events.Reload()
    names = {name.replace("eval/", "eval_").removeprefix("train/"): name for name in events.Tags()["scalars"]}
    compare({key: {e.step: e.value for e in events.Scalars(name)} for key, name in names.items()}, tracked)
    (first, *_) = events.Tensors("args/text_summary")
    assert b'"training.batch": 4' in first.tensor_proto.string_val[0]


def test_mlflow(tracked: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert (run.info.status, run.info.run_name.partition("-")[0]) == ("FINISHED", "run")
    assert (run.data.params["training.batch"], run.data.params["method.name"]) == ("4", "aim")
    assert "training.report_to" not in run.data.params
    found = {
        key: {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)} for key in run.data.metrics
    }
    compare(found, tracked)


def test_trackio(tracked: Path) -> None:
    pytest.importorskip("trackio")
    import trackio

    (run,) = trackio.Api().runs("merganser")
    assert run.name.startswith("run-")
    found: dict[str, dict[int, float]] = {}
    from trackio.sqlite_storage import SQLiteStorage

    for values in SQLiteStorage.get_logs("merganser", run.name):
        for key, value in values.items():
            name = key.replace("eval/", "eval_").removeprefix("train/")
            found.setdefault(name, {})[values["train/global_step"]] = value
    compare(found, tracked)


class Failing(Tracker):
    """Takes a few values, then fails as a server that is gone."""

    title = "Failing"
    packages = ("json",)
    taken = 0

    def begin(self, step: int) -> Any:
        return None

    def log(self, values: Any, step: int) -> None:
        Failing.taken += 1
        if Failing.taken > 3:
            raise ConnectionError("the server\nis gone")

    def end(self, failed: bool) -> None:
        raise AssertionError("it is not open any more")


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", Failing)
    events: list[Event] = []
    with Learner.open(tmp_path / "run", listener=events.append, **sections("wandb", steps=4)) as learner:
        learner.learn(task("mood"))
        learner.learn(task("topic"))
    said = [event.text for event in events if isinstance(event, Notice) and "Failing" in event.text]
    assert said == ["Failing failed: ConnectionError: the server. Nothing more is reported to it; the run goes on."]
    assert Failing.taken == 4


def test_a_tracker_that_cannot_begin_and_steps_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what :class:`Reporting` does with events; the trackers' own files are tested above."""
    from merganser.events import StepDone, TaskStarted

    calls: list[Any] = []

    class Recording(Failing):
        title = "Recording"

        def begin(self, step: int) -> Any:
            calls.append(step)

        def log(self, values: Any, step: int) -> None:
            torch.rand(1)  # as trackers that draw names
            random.random()
            calls.append((step, values.get("loss")))

        def end(self, failed: bool) -> None:
            calls.append(failed)

    class Unreachable(Failing):
        title = "Unreachable"

        def begin(self, step: int) -> Any:
            raise OSError("no route to host")

    monkeypatch.setattr(trackers, "_arguments", lambda run: None)
    monkeypatch.setattr("merganser.learner.reporting.run_identity", lambda path: "0")
    monkeypatch.setitem(TRACKERS, "wandb", Recording)
    monkeypatch.setitem(TRACKERS, "mlflow", Unreachable)
    config = check_config({**sections(["mlflow", "wandb"])}, "options")
    cost, info = types.SimpleNamespace(steps=30), types.SimpleNamespace(config=config.model_dump(), seed=1)
    info.command, info.versions = "", {}
    row = types.SimpleNamespace(file=types.SimpleNamespace(tasks=[types.SimpleNamespace(cost=cost)]))
    directory = types.SimpleNamespace(path=Path("run"), info=info)
    session: Any = types.SimpleNamespace(config=config, rows=[row], directory=directory)
    heard: list[Event] = []
    reporting = Reporting(session, heard.append)
    states = torch.get_rng_state(), random.getstate()
    reporting(TaskStarted("topic", 2, 12, 4, 7, step=3))
    reporting(StepDone("topic", 4, 7, 0.5))
    reporting(StepDone("topic", 5, 7, 0.25))
    reporting(StepDone("topic", 6, 7, 0.75))
    reporting(StepDone("topic", 7, 7, 0.125))  # the last one is reported whatever the interval
    reporting(TaskStarted("topic (alone)", 1, 12, 0, 6))
    reporting(StepDone("topic (alone)", 2, 6, 9.0))
    reporting.end(failed=True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert calls == [33, (33, None), (34, 0.5), (36, 0.5), (37, 0.125), True]
    assert [event.text.split(".")[0] for event in heard if isinstance(event, Notice)] == [
        "Unreachable failed: OSError: no route to host"
    ]


def test_a_refused_row_has_steps_in_a_tracker_and_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are repeated by the next attempt at the same places: the run has taken none."""
    calls: list[tuple[int, list[str]]] = []

    class Recording(Failing):
        def log(self, values: Any, step: int) -> None:
            calls.append((step, sorted(values)))

        def end(self, failed: bool) -> None:
            calls.append((-1, [str(failed)]))

    monkeypatch.setitem(TRACKERS, "wandb", Recording)
    with Learner.open(tmp_path / "run", **sections("wandb", steps=2)) as learner:
        with pytest.raises(RefusedRow):
            learner.learn(task("mood"), accept=lambda rows: False)
        refused, calls[:] = list(calls), []
        learner.learn(task("mood"), accept=lambda rows: True)
    scores = [(0, ["eval_score/mood"])] if refused[0] == (0, ["eval_score/mood"]) else []
    steps = [(0, ["task"]), (2, ["learning_rate", "loss"])]
    assert [call for call in refused if call not in scores] == steps
    assert calls[:2] == steps
    assert calls[2][0] == 2
    assert {"eval_OP", "eval_score/mood"} <= set(calls[2][1])
    assert calls[3:] == [(-1, ["False"])]


def test_weights_and_biases_gets_one_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of the package, which is not installed: what it is called with."""
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    calls: list[Any] = []
    wandb: Any = types.ModuleType("wandb")
    wandb.__spec__ = importlib.util.spec_from_loader("wandb", None)
    config_util: Any = types.ModuleType("wandb.sdk.lib.config_util")
    config_util.ConfigError = RuntimeError
    wandb.run, wandb.config = None, {}

    def init(**given: Any) -> None:
        calls.append(given)
        wandb.run = types.SimpleNamespace(_label=lambda code: None, summary={})

    class Config(dict[str, Any]):
        def update(self, values: Any, allow_val_change: bool) -> None:  # type: ignore[override]
            super().update(values)

    wandb.init, wandb.config = init, Config()
    wandb.log = lambda values: calls.append(values)
    wandb.finish = lambda exit_code: calls.append(exit_code)
    for name, module in (("wandb", wandb), ("wandb.sdk.lib.config_util", config_util)):
        monkeypatch.setitem(sys.modules, name, module)
    run = trackers.TrackedRun(tmp_path / "mine", "abcd1234", {"training.batch": 4})
    tracker = TRACKERS["wandb"](run, 30)
    tracker.log({"loss": 0.5, "eval_OP": 0.25}, 31)
    tracker.end(failed=True)
    assert calls == [
        {"project": "merganser", "name": "mine-abcd1234", "id": "abcd1234", "resume": "allow"},
        {"train/loss": 0.5, "eval/OP": 0.25, "train/global_step": 31},
        1,
    ]
    assert wandb.config == {"training.batch": 4}


def test_what_is_not_installed_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    stream = toys.write_stream(tmp_path, training={"report_to": "mlflow"})
    refused = Command(monkeypatch, capsys)("run", stream, "--out", tmp_path / "run")
    assert (refused.code, (tmp_path / "run").exists()) == (2, False)
    assert refused.error == (
        "training.report_to: mlflow needs the package mlflow, which is not installed. Install it (pip install mlflow), "
        "or leave it out of training.report_to."
    )
    with pytest.raises(InputError, match="needs the package tensorboard,"):
        check_trackers(["tensorboard"])
    with pytest.raises(InputError, match="report_to"):
        check_config(sections("comet"), "options")


def test_names_that_mlflow_would_make_equal_stay_apart() -> None:
    keys = [trackers._ascii_key(f"eval_score/{name}") for name in ("天气", "新闻", "news")]
    assert len(set(keys)) == 3
    assert keys[2] == "eval_score/news"
