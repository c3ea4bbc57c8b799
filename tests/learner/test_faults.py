"""A kill, a power cut and an error at every call that changes a run: it ends in the bytes of an undisturbed one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from merganser.config import RunConfig, load_config
from merganser.errors import MerganserError
from merganser.learner import Learner, opening
from merganser.runs.directory import RunDirectory
from merganser.runs.undo import undo_rows
from merganser.streams.loading import load_stream
from merganser.streams.task import Task
from tests.faults import check_every_error, check_every_stop
from tests.learner.toys import write_stream

RUN, OUT = Path("run"), Path("out")


@dataclass(frozen=True)
class Work:
    """Folders with a run that has learned no, one and two tasks, and what can be done in them.

    Every method works in the current folder and brings it to the same end wherever it was stopped before.
    """

    config: RunConfig
    tasks: list[Task]
    starts: list[Path]

    def learn(self, number: int) -> None:
        """Learn task ``number`` (from 1) if it is not learned; the same learner tries again after an error."""
        task = self.tasks[number - 1]
        with Learner.of_config(RUN, self.config) as opened:
            failed = False
            if task.name not in opened.learned:
                try:
                    opened.learn(task)
                except (OSError, MerganserError):
                    failed = True
            if failed and task.name not in opened.learned:
                opened.learn(task)

    def undo(self) -> None:
        """Undo the second task if it is learned."""
        with Learner.open(RUN) as opened:
            if len(opened.learned) == 2:
                undo_rows(opened.session.directory)

    def export(self, merged: bool) -> None:
        """Export the model if it is not exported."""
        if not OUT.exists():
            with Learner.open(RUN, read_only=True) as opened:
                opened.export(OUT, merged=merged)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """The model is loaded once, and every learner gets a copy of it."""
    folder = tmp_path_factory.mktemp("faults")
    training = {"steps": 2, "checkpoint_steps": 1, "checkpoint_minutes": None, "warmup": 0}
    method = {"interval": 2, "cold_start": 0, "rehearsal_steps": 1, "ablation": {"watch_forgetting": False}}
    config = load_config(write_stream(folder, training=training, method=method))
    assert config.stream is not None
    starts = [folder / f"after-{number}" for number in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        backbone = opening._load_backbone(config, {})
        patch.setattr(opening, "_load_backbone", lambda *_: copy.deepcopy(backbone))
        work = Work(config, load_stream(config.stream, folder).tasks, starts)
        starts[0].mkdir()
        for number in (1, 2):
            shutil.copytree(starts[number - 1], starts[number])
            with pytest.MonkeyPatch.context() as here:
                here.chdir(starts[number])
                work.learn(number)
        yield work


def reopen() -> None:
    """Repair a run if there is one."""
    if RunDirectory.exists(RUN):
        RunDirectory.open(RUN).repair()


ACTIONS: dict[str, tuple[int, Callable[[Work], None]]] = {
    "begin a run": (0, lambda work: work.learn(1)),
    "learn a task": (1, lambda work: work.learn(2)),
    "undo": (2, lambda work: work.undo()),
    "export": (2, lambda work: work.export(merged=False)),
    "export the whole model": (2, lambda work: work.export(merged=True)),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_stopped_before_every_call(action: str, work: Work, tmp_path: Path) -> None:
    learned, act = ACTIONS[action]
    shutil.copytree(work.starts[learned], tmp_path / "work")
    check_every_stop(tmp_path / "work", lambda: act(work), None if "export" in action else reopen)


@pytest.mark.parametrize("action", ["learn a task", "undo", "export"])
def test_an_error_in_place_of_every_call(action: str, work: Work, tmp_path: Path) -> None:
    learned, act = ACTIONS[action]
    shutil.copytree(work.starts[learned], tmp_path / "work")
    check_every_error(tmp_path / "work", lambda: act(work))
