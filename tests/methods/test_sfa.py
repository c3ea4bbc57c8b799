"""SFA: when it averages, its formula by hand, and its equality with CoMA where it averages once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merganser.methods import METHODS, make_method
from merganser.methods.sfa import Sfa, SfaOptions
from merganser.report.formatting import describe_merge
from merganser.training.records import TaskRecords
from merganser.training.start_averaging import StartAveraging, average_steps
from merganser.weights import Weights
from tests.methods import plain
from tests.methods.stream import Stream, draw_weights


@pytest.mark.parametrize(
    ("steps", "p", "expected"),
    [
        (80, 0.25, [20, 40, 60]),
        (10, 0.25, [3, 5, 8]),
        (7, 0.3, [2, 4, 6]),
        (10, 1.0, []),
        (3, 1e-300, [1, 2]),
        (1, 0.25, []),
    ],
)
def test_averages_come_after_every_share_of_the_steps_and_the_last_is_that_of_the_end(
    steps: int, p: float, expected: list[int]
) -> None:
    assert average_steps(steps, p) == expected


def test_the_formula_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(2.0)
    records = TaskRecords("t", 2)
    averaging = StartAveraging([2, 4], 0.25, records)
    plain.fire(averaging, "on_train_begin", model=module)
    for step, (trained, expected) in enumerate([(3.0, 3.0), (6.0, 5.0), (7.0, 7.0), (10.0, 8.0), (9.0, 9.0)], 1):
        module.weight.data.fill_(trained)
        plain.fire(averaging, "on_step_end", step)
        assert module.weight.item() == expected
    assert [(m.step, m.cause, m.weight_new, m.weight_old, m.norm_new) for m in records.merges] == [
        (2, "due", 0.75, 0.25, 4.0),
        (4, "due", 0.75, 0.25, 8.0),
    ]
    assert [(m.interval, m.next_interval, m.learning_signal) for m in records.merges] == [(2, 2, 2.0), (2, 2, 2.0)]
    told = describe_merge(records.merges[0])
    assert told.startswith("Merge 1 of t, after step 2: it was due (planned every 2 steps). Learning signal 2.")


@pytest.mark.parametrize("merge_first", [False, True])
def test_one_average_at_the_end_is_coma(merge_first: bool, tmp_path: Path) -> None:
    deployed = []
    for name, options in (("sfa", {"p": 1.0, "beta": 0.25}), ("coma", {"alpha": 0.75})):
        (tmp_path / name).mkdir()
        method = make_method(METHODS[name].Options(name=name, merge_first=merge_first, **options))  # type: ignore[call-arg]
        run = Stream(method, tmp_path / name)
        for seed in (1, 2):
            run.learn(draw_weights(seed), [])
        deployed.append(run.deployed)
        assert run.kept == {}
    for ours, theirs in zip(*deployed, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    last, start, trained = deployed[0][2], deployed[0][1], draw_weights(2)
    for name, value in last.items():
        torch.testing.assert_close(value, 0.75 * trained[name] + 0.25 * start[name])


def test_the_first_task_is_averaged_only_where_that_is_asked_for() -> None:
    module = torch.nn.Linear(1, 1)
    for merge_first in (False, True):
        method = Sfa(SfaOptions(merge_first=merge_first))
        rows = [dict(Weights.of(module).snapshot())]
        assert len(method.callbacks(plain.context(module, 1, rows))) == merge_first
        assert len(method.callbacks(plain.context(module, 2, rows * 2))) == 1
