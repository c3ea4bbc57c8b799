"""Runs beside a stream that end at an event, as if the process did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from merganser.config import load_config
from merganser.events import Event, Notice, StepDone, TaskStarted
from merganser.learner import Learner
from merganser.streams.loading import load_stream
from tests.learner.toys import model_folder, settings, write_config, write_stream


class Stop(BaseException):
    """Stands for the end of the process."""


def learn(run: Path, stop: Callable[[Event], bool] = lambda event: False) -> list[Event]:
    """Learn the stream beside a run until an event at which the process ends, or to the end; what was told."""
    told: list[Event] = []

    def listener(event: Event) -> None:
        told.append(event)
        if stop(event):
            raise Stop

    config = load_config(run.parent / "stream.yaml")
    assert config.stream is not None
    tasks = load_stream(config.stream, run.parent).tasks
    try:
        with Learner.of_config(run, config, listener=listener) as learner:
            learner.learn_stream(tasks)
    except Stop:
        pass
    return told


def at(task: str, step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StepDone) and (event.task, event.step) == (task, step)


def notices(told: list[Event]) -> list[str]:
    return [event.text for event in told if isinstance(event, Notice)]


def steps(told: list[Event], task: str = "topic") -> list[int]:
    return [event.step for event in told if isinstance(event, StepDone) and event.task == task]


def started(told: list[Event], task: str = "topic") -> TaskStarted:
    (found,) = [event for event in told if isinstance(event, TaskStarted) and event.task == task]
    return found


def stream_of(folder: Path, case: dict[str, Any]) -> Path:
    """The stream of a case; returns where its run goes."""
    changes = {key: dict(value) for key, value in case.items()}
    changes["training"] = {"steps": 7, "checkpoint_steps": 1, "checkpoint_minutes": None, **changes.get("training", {})}
    model = changes.setdefault("model", {})
    width = 64 if model.get("weights") == "4bit" else 32
    model["name"] = str(model_folder(model.get("kind", "matcher"), width=width))
    model.setdefault("lora", {"r": 4, "dropout": 0.1})
    method, mix = changes.pop("method", {}), changes.pop("mix", None)
    if "name" not in method:
        method = {"name": "aim", "interval": 2, "cold_start": 1, "rehearsal_steps": 2, **method}
    values = settings()
    values["method"] = method
    for section, change in changes.items():
        values[section].update(change)
    if values["training"].get("select_best"):
        for task in values["stream"]["tasks"]:
            task["dev"] = task["test"]
    if mix is not None:
        values["stream"]["mix"] = mix
    write_stream(folder)
    write_config(folder / "stream.yaml", values)
    return folder / "run"
