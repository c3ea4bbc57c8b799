"""Methods that merge after each task, against their formulas written out and the rules for all models at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from merganser.errors import InputError
from merganser.merging.ema import ema
from merganser.merging.linear import linear
from merganser.merging.magmax import magmax
from merganser.merging.opcm import opcm
from merganser.merging.tunable_magmax import tunable_magmax
from merganser.methods import METHODS, make_method
from merganser.methods.pm import PmOptions, draw_sign
from merganser.methods.shared.task_preferences import by_label_overlap, by_similarity
from merganser.streams.answers import AnswerSpec
from merganser.training.determinism import derive_seed
from merganser.weights import Weights
from tests.methods.stream import Stream, draw_features, draw_weights, exact_fisher

TASKS = [(draw_weights(seed), draw_features(seed)) for seed in (1, 2, 3)]
THETAS = [weights for weights, _ in TASKS]
NAMES = list(THETAS[0])


def stream(folder: Path, name: str, **options: Any) -> Stream:
    return Stream(make_method(METHODS[name].Options(name=name, **options)), folder)


def learned(folder: Path, name: str, **options: Any) -> Stream:
    """All three tasks learned."""
    run = stream(folder, name, **options)
    for weights, features in TASKS:
        run.learn(weights, features)
    return run


def close(found: Weights, expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name].to(found[name].dtype), rtol=tolerance, atol=tolerance)


def test_magmax_over_a_stream_is_magmax_of_all_models(tmp_path: Path) -> None:
    run = learned(tmp_path, "magmax")
    assert run.method.start == "trained"
    for count in (1, 2, 3):
        for name in NAMES:
            expected = magmax([theta[name] for theta in THETAS[:count]], run.pretrained[name])
            assert torch.equal(run.deployed[count][name], expected)
    assert run.kept == {"largest updates": run.pretrained.nbytes}


def test_magmax_gives_ties_to_the_later_task_and_records_how_much_it_supplied(tmp_path: Path) -> None:
    zero = {name: torch.zeros_like(value) for name, value in THETAS[0].items()}
    run = Stream(make_method(METHODS["magmax"].Options(name="magmax")), tmp_path, zero)
    ones = {name: torch.ones_like(value) for name, value in zero.items()}
    minus = {"layer.weight": -ones["layer.weight"], "layer.bias": ones["layer.bias"] / 2}
    run.learn(ones, [])
    found = run.learn(minus, [])
    close(found, {"layer.weight": -ones["layer.weight"] / 2, "layer.bias": ones["layer.bias"] / 2})
    (record,) = run.method.records.merges
    assert record.cause == "end"
    assert (record.weight_new, record.weight_old) == (pytest.approx(0.5 * 12 / 15), pytest.approx(0.5 * 3 / 15))
    assert record.norm_new == pytest.approx((12 + 3 / 4) ** 0.5)
    # From the first task's own weights to the second's: 12 entries by 2, 3 by 1/2, in 4 steps.
    assert record.learning_signal == pytest.approx((24 + 1.5) / 4)


@pytest.mark.parametrize("preference", ["uniform", [1.0, 0.0, 3.0]])
def test_tunable_magmax_over_a_stream_is_the_rule_for_all_models(preference: Any, tmp_path: Path) -> None:
    run = learned(tmp_path, "tunable_magmax", preference=preference)
    for name in NAMES:
        models = [theta[name] for theta in THETAS]
        weights = [1.0] * 3 if preference == "uniform" else preference
        seed = derive_seed(13, "tunable_magmax")
        expected = tunable_magmax(models, run.pretrained[name], weights=weights, seed=seed, name=name)
        assert torch.equal(run.deployed[3][name], expected)
    supplied = (run.deployed[3]["layer.weight"] - run.pretrained["layer.weight"]) * 2
    own = THETAS[2]["layer.weight"] - run.pretrained["layer.weight"]
    assert int(torch.isclose(supplied, own, atol=1e-6).sum()) == (4 if preference == "uniform" else 9)
    assert run.kept["earlier tasks' weights"] == 2 * run.pretrained.nbytes


def test_preferences_by_labels_and_by_features() -> None:
    labels = {"a": ("x", "y"), "b": ("y", "z"), "c": ("u",)}
    assert by_label_overlap(labels, ["a", "b", "c"]) == pytest.approx([1.5 / 4, 1.5 / 4, 1 / 4])
    assert by_label_overlap(labels, ["a"]) == pytest.approx([0.75, 0.25, 0.0])
    features = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 1.0]), "c": torch.tensor([-1.0, 0.0])}
    # Transcribed; cosines are 1, .7071 and -1.
    raw = [math.exp(-4 * (1 - cosine) / 2) for cosine in (1, 0.5**0.5, -1)]
    assert by_similarity(features, ["a"], 4.0) == pytest.approx([weight / sum(raw) for weight in raw])
    assert by_similarity(features, ["a"], 0.0) == pytest.approx([1 / 3] * 3)
    assert by_similarity(features, ["c"], 1e6) == [0.0, 0.0, 1.0]
    assert by_similarity({"a": torch.zeros(2)}, ["a"]) == [1.0]


def test_similar_features_weigh_as_in_the_authors_program() -> None:
    """It gives .884, .116 and .000 to cosines of 1, .959 and .75."""
    features = {str(cosine): torch.tensor([cosine, (1 - cosine**2) ** 0.5]) for cosine in (1.0, 0.9594, 0.75)}
    assert by_similarity(features, ["1.0"]) == pytest.approx([0.884, 0.116, 0.000], abs=5e-4)


def test_label_overlap_decides_the_shares(tmp_path: Path) -> None:
    run = stream(tmp_path, "tunable_magmax", preference="label_overlap", wanted=["two"], scale=1.0)
    one, two = AnswerSpec(("x", "y")), AnswerSpec(("z", "w"))
    run.learn(*TASKS[0], task="one", spec=one)
    close(run.deployed[1], THETAS[0])  # the wanted task is not learned yet: all there are
    run.learn(*TASKS[1], task="two", spec=two, earlier={"one": one})
    close(run.deployed[2], THETAS[1])  # only the second knows a wanted label
    with pytest.raises(InputError, match="task 'three' answers in free text"):
        run.method.callbacks(run.context(3, [], task="three", spec=AnswerSpec()))


def test_tunable_magmax_refuses_preferences_that_do_not_fit() -> None:
    options = METHODS["tunable_magmax"].Options
    method = make_method(options(name="tunable_magmax", preference=[1.0, 2.0]))  # type: ignore[call-arg]
    assert method.check_tasks(["a", "b"], whole=True) is None
    with pytest.raises(InputError, match="has 2 numbers, and the run has 3 tasks"):
        method.check_tasks(["a", "b", "c"])
    assert method.check_tasks(["a"]) is None
    remark = method.check_tasks(["a"], whole=True)
    assert remark == "method.preference has 2 numbers for 1 tasks: later tasks use the rest."
    wanting = make_method(options(name="tunable_magmax", preference="label_overlap", wanted=["banking", "talx"]))  # type: ignore[call-arg]
    assert wanting.check_tasks(["banking"]) is None  # the other may be yet to come
    with pytest.raises(InputError, match="names 'talx', and the stream has no such task") as caught:
        wanting.check_tasks(["banking", "talk"], whole=True)
    assert caught.value.remedy == "Did you mean 'talk'?"
    for wrong in ({"preference": [0.0, 1.0]}, {"preference": []}, {"preference": [1.0, -1.0]}, {"wanted": ["a"]}):
        with pytest.raises(ValidationError, match=r"preference|wanted"):
            options(name="tunable_magmax", **wrong)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_coma_is_the_moving_average_of_all_models(alpha: float, tmp_path: Path) -> None:
    run = learned(tmp_path, "coma", alpha=alpha)
    assert run.method.start == "deployed"
    close(run.deployed[3], {name: ema([theta[name] for theta in THETAS], alpha=alpha) for name in NAMES})
    if alpha in (0.0, 1.0):
        close(run.deployed[3], THETAS[0 if alpha == 0 else 2], 1e-6)
    (record,) = run.method.records.merges
    assert (record.task, record.merge, record.step, record.interval) == ("task3", 1, 4, 4)
    assert (record.weight_new, record.weight_old) == (alpha, 1 - alpha)
    before = Weights(dict(run.deployed[2])).minus(run.pretrained)
    assert record.norm_old == pytest.approx(before.l2())
    assert record.cosine == pytest.approx(before.cosine(Weights(THETAS[2]).minus(run.pretrained)))
    assert record.learning_signal == pytest.approx(Weights(THETAS[2]).minus(run.deployed[2]).l1() / 4)


def test_coma_from_the_first_task_on(tmp_path: Path) -> None:
    run = learned(tmp_path, "coma", alpha=0.3, merge_first=True)
    start = run.pretrained
    close(run.deployed[1], {name: 0.7 * start[name] + 0.3 * THETAS[0][name] for name in NAMES})
    close(run.deployed[3], {name: ema([start[name], *(t[name] for t in THETAS)], alpha=0.3) for name in NAMES})


def test_running_average_is_the_mean_of_all_models(tmp_path: Path) -> None:
    run = learned(tmp_path, "running_average")
    close(run.deployed[2], {name: linear([theta[name] for theta in THETAS[:2]]) for name in NAMES})
    close(run.deployed[3], {name: linear([theta[name] for theta in THETAS]) for name in NAMES})


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_cofima_weighs_every_entry_by_its_fisher(alpha: float, tmp_path: Path) -> None:
    run = learned(tmp_path, "cofima", alpha=alpha)
    merged = dict(THETAS[0])
    for (_, old_features), old, (theta, features) in zip(TASKS, THETAS, TASKS[1:], strict=False):
        earlier, now = exact_fisher(old, old_features), exact_fisher(theta, features)
        merged = {
            name: ((1 - alpha) * earlier[name] * merged[name] + alpha * now[name] * theta[name])
            / ((1 - alpha) * earlier[name] + alpha * now[name])
            for name in NAMES
        }
    close(run.deployed[3], merged)
    assert run.kept == {"Fisher information": run.pretrained.nbytes}
    (record,) = run.method.records.merges
    assert 0 <= record.weight_new <= 1
    assert record.weight_new + record.weight_old == pytest.approx(1)
    if alpha in (0.0, 1.0):
        assert record.weight_new == alpha


def test_cofima_is_coma_where_nothing_is_known(tmp_path: Path) -> None:
    """Inputs that are zero in one place in both tasks: the weights that read it have no Fisher information."""
    blind = [(theta, [{**f, "x": f["x"] * torch.tensor([1.0, 0.0, 1.0, 1.0])} for f in fs]) for theta, fs in TASKS]
    run = stream(tmp_path, "cofima")
    for weights, features in blind[:2]:
        run.learn(weights, features)
    expected = 0.6 * THETAS[0]["layer.weight"] + 0.4 * THETAS[1]["layer.weight"]
    torch.testing.assert_close(run.deployed[2]["layer.weight"][:, 1], expected[:, 1])
    assert not torch.isclose(run.deployed[2]["layer.weight"][:, 0], expected[:, 0]).any()


def test_opcm_over_a_stream_is_the_rule_for_all_models(tmp_path: Path) -> None:
    run = learned(tmp_path, "opcm", share_of_spectrum=0.7)
    assert run.method.start == "pretrained"
    close(run.deployed[1], THETAS[0])
    for count in (2, 3):
        expected = {
            name: opcm([theta[name] for theta in THETAS[:count]], run.pretrained[name], share_of_spectrum=0.7)
            for name in NAMES
        }
        close(run.deployed[count], expected, 1e-4)
    (record,) = run.method.records.merges
    assert record.norm_new == pytest.approx(Weights(THETAS[2]).minus(run.pretrained).l2(), rel=1e-5)
    assert record.cosine == pytest.approx(
        Weights(THETAS[2]).minus(run.pretrained).cosine(run.deployed[2].minus(run.pretrained)), rel=1e-4
    )


FISHERS = [exact_fisher(theta, features) for theta, features in TASKS]


def total_loss(weights: dict[str, Tensor], number: int) -> float:
    """Sum over the first tasks of (m - theta_i)' F_i (m - theta_i)."""
    tasks = list(zip(THETAS, FISHERS, strict=True))[:number]
    return sum(
        float((fisher[name] * (weights[name] - theta[name]).pow(2)).double().sum())
        for theta, fisher in tasks
        for name in NAMES
    )


def test_pm_minimises_the_losses_of_all_tasks(tmp_path: Path) -> None:
    run = learned(tmp_path, "pm")
    for count in (2, 3):
        before, theta = run.deployed[count - 1], THETAS[count - 1]
        line = np.linspace(0, 1, 1001)
        losses = [
            total_loss({name: before[name] + float(a) * (theta[name] - before[name]) for name in NAMES}, count)
            for a in line
        ]
        best = float(line[int(np.argmin(losses))])
        assert 0.05 < best < 0.95
        close(run.deployed[count], {name: before[name] + best * (theta[name] - before[name]) for name in NAMES}, 2e-3)
    assert run.method.records.merges[0].weight_new == pytest.approx(best, abs=1e-3)
    assert run.kept == {"Fisher information": run.pretrained.nbytes, "weighted weights": run.pretrained.nbytes}


def test_pm_perturbs_along_the_task_vector_and_restores_the_weights(tmp_path: Path) -> None:
    from types import SimpleNamespace

    run = stream(tmp_path, "pm", perturbation=0.25, probability=0.4)
    context = run.context(1, TASKS[0][1])
    (callback,) = run.method.callbacks(context)
    weights = Weights.of(run.module)
    weights.copy_(Weights(THETAS[0]))
    seen = set()
    for step in range(12):
        sign = draw_sign(derive_seed(context.seed, "pm"), step, 0.4)
        seen.add(sign)
        state: Any = SimpleNamespace(global_step=step)
        callback.on_step_begin(None, state, None)  # type: ignore[arg-type]
        moved = {n: THETAS[0][n] + sign * 0.25 * (THETAS[0][n] - run.pretrained[n]) for n in NAMES}
        close(weights, moved, 1e-6)
        callback.on_pre_optimizer_step(None, state, None)  # type: ignore[arg-type]
        assert all(torch.equal(weights[name], THETAS[0][name]) for name in NAMES)
    assert seen == {-1, 0, 1}
    for probability, expected in ((0.25, (0.25, 0.5, 0.25)), (PmOptions().probability, (1 / 3, 1 / 3, 1 / 3))):
        counts = [draw_sign(3, step, probability) for step in range(4000)]
        assert [counts.count(sign) / 4000 for sign in (-1, 0, 1)] == pytest.approx(expected, abs=0.03)
    assert stream(tmp_path, "pm", perturbation=0.0).method.callbacks(context) == []


@pytest.mark.parametrize("name", ["aim", "replay", "forever", "ewc", "lwf"])
def test_a_finish_weight_keeps_a_share_of_the_way_from_the_second_task_on(name: str, tmp_path: Path) -> None:
    run = learned(tmp_path, name, finish_weight=0.3)
    close(run.deployed[1], THETAS[0], 0)
    for task in (1, 2):
        close(run.deployed[task + 1], {n: 0.7 * run.deployed[task][n] + 0.3 * THETAS[task][n] for n in NAMES})
    (record,) = run.method.records.merges
    assert (record.cause, record.weight_new, record.weight_old) == ("end", 0.3, 0.7)
    (tmp_path / "off").mkdir()
    assert not learned(tmp_path / "off", name).method.records.merges
    with pytest.raises(ValidationError, match="finish_weight"):
        METHODS[name].Options(name=name, finish_weight=1.1)  # type: ignore[call-arg]


def test_ewc_measures_importance_at_the_weights_that_it_deploys(tmp_path: Path) -> None:
    run = learned(tmp_path, "ewc", finish_weight=0.5, decay=0.0)
    expected = exact_fisher(run.deployed[3], TASKS[2][1])
    close(run.method.fisher, expected, 1e-4)  # type: ignore[attr-defined]
