"""BECAME against its formula, its two stages, and what it needs in the middle of a task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merganser.merging.line_search import two_stage_interpolation
from merganser.methods import make_method
from merganser.methods.became import Became, BecameOptions
from merganser.training.records import TaskRecords
from merganser.training.trainer import TaskHooks, train_task
from merganser.weights import Weights
from tests.methods.stream import Stream, collate, draw_features, draw_weights, exact_fisher
from tests.training.trainable import Model

FIRST, SECOND = (draw_weights(1), draw_features(1)), (draw_weights(2), draw_features(2))


def after_first_task(folder: Path, **options: Any) -> Stream:
    run = Stream(make_method(BecameOptions(**options)), folder)
    deployed = run.learn(*FIRST)
    assert all(torch.equal(deployed[name], value) for name, value in FIRST[0].items())
    assert run.method.records.merges == []
    return run


@pytest.mark.parametrize(("drift", "expected"), [(True, 0.3), (False, 0.5)])
def test_the_position_between_the_stages_by_hand(drift: bool, expected: float) -> None:
    """One weight, F = Lambda = 1, from 0 by .4 in the first stage and by 1 in the second: (1 - .4) / 2 and 1 / 2."""
    before, projected, trained, one = ({"w": torch.tensor([value])} for value in (0.0, 0.4, 1.4, 1.0))
    assert two_stage_interpolation(before, projected, trained, one, one, drift=drift) == pytest.approx(expected)


@pytest.mark.parametrize("compat", [None, "reference"])
def test_the_merge_is_the_closed_form(compat: Any, tmp_path: Path) -> None:
    run = after_first_task(tmp_path, compat=compat)
    spared, theta = draw_weights(5), SECOND[0]
    context = run.context(2, SECOND[1])
    current = Weights.of(run.module).copy_(run.deployed[1])
    method = run.method
    assert isinstance(method, Became)
    (projection,) = method.callbacks(context)
    current.copy_(Weights(spared))
    state: Any = SimpleNamespace(global_step=2)
    projection.on_step_end(None, state, None)  # type: ignore[arg-type]
    current.copy_(Weights(theta))
    method.after_task(context)
    past, now = exact_fisher(*FIRST), exact_fisher(*SECOND)
    over = under = 0.0
    for name in theta:
        delta, drift = theta[name] - spared[name], spared[name] - FIRST[0][name]
        over += float((delta * now[name] * delta).sum())
        if compat is None:
            over -= float((drift * past[name] * delta).sum())
        under += float((delta * (past[name] + now[name]) * delta).sum())
    share = over / under
    assert 0 < share < 1
    for name in theta:
        torch.testing.assert_close(current[name], spared[name] + share * (theta[name] - spared[name]))
    (record,) = method.records.merges
    assert record.weight_new == pytest.approx(share, rel=1e-5)
    method.save(tmp_path)
    again = Became(BecameOptions())
    again.load(tmp_path)
    assert again._past is not None
    for name in theta:
        torch.testing.assert_close(again._past[name], past[name] + now[name])
    assert again.bytes_kept() == method.bytes_kept()
    assert again.bytes_kept()["Fisher information"] == run.pretrained.nbytes


@pytest.mark.parametrize("projected", [0.0, 1.0])
def test_one_stage_only(projected: float, tmp_path: Path) -> None:
    """Projected to the end: nothing to merge. Never projected: from the deployed weights to the task's own."""
    run = after_first_task(tmp_path, projected=projected, energy=0.9)
    context = run.context(2, SECOND[1])
    current = Weights.of(run.module).copy_(run.deployed[1])
    hooks = TaskHooks(run.method.callbacks(context))
    training = context.training.model_copy(update={"steps": 4, "learning_rate": 0.1, "warmup": 0})
    train_task(Model(run.module, collate), SECOND[1], training, seed=1, records=TaskRecords("t"), hooks=hooks)
    trained = current.snapshot()
    run.method.after_task(context)
    share = run.method.records.merges[0].weight_new
    if projected:
        assert share == 1
        assert all(torch.equal(current[name], trained[name]) for name in trained)
        assert torch.equal(trained["layer.bias"], FIRST[0]["layer.bias"])  # every input meets it
    else:
        assert 0 < share < 1
        for name, value in current.items():
            torch.testing.assert_close(value, FIRST[0][name] + share * (trained[name] - FIRST[0][name]))


def test_the_state_in_the_middle_of_a_task(tmp_path: Path) -> None:
    run = after_first_task(tmp_path)
    context = run.context(2, SECOND[1])
    current = Weights.of(run.module).copy_(run.deployed[1])
    (projection,) = run.method.callbacks(context)
    assert run.method.task_state().tensors == {}
    current.copy_(Weights(draw_weights(5)))
    state: Any = SimpleNamespace(global_step=2)
    projection.on_step_end(None, state, None)  # type: ignore[arg-type]
    kept = run.method.task_state()
    current.copy_(run.deployed[1])
    run.method.begin_task()
    run.method.callbacks(context)
    run.method.load_task_state(kept)
    found = run.method.task_state().tensors
    assert all(torch.equal(found[name], value) for name, value in draw_weights(5).items())
