"""``aim-tried`` of benchmarks/tried: ``aim`` where nothing is tried, something else with every option; its formulas."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from merganser import Learner
from tests.learner.test_learner import sections, task
from tests.learner.toys import results

PACKAGE = Path(__file__).parent.parent.parent / "benchmarks" / "tried"
PROJECT = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``pip install benchmarks/tried`` leaves."""
    info = tmp_path / "site" / "merganser_tried-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: merganser-tried\nVersion: 0.1.0\n")
    points = PROJECT["entry-points"]["merganser.methods"]
    (info / "entry_points.txt").write_text("[merganser.methods]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(str(PACKAGE))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def learned(run: Path, name: str, training: dict[str, Any] | None = None, **options: Any) -> dict[str, bytes]:
    """Learn three tasks with merges after every second step; file -> content of what was trained."""
    method = {"interval": 2, "replay_share": 0.5, "replay_passes": None, **options}
    given = sections(training={"steps": 4, "batch": 4, **(training or {})}, evaluation={"future": False})
    given["model"] = {**given["model"], "candidates": "seen"}
    given["memory"] = {"share": 0.5}
    given["method"] = {"name": name, **method}
    with Learner.open(run, **given) as learner:
        learner.learn_stream([task("mood"), task("topic"), task("truth")])
    return {file: content for file, content in results(run).items() if file.endswith("safetensors")}


TRIED: dict[str, dict[str, Any]] = {
    "halve_moments": {"halve_moments": True, "moments": "keep"},
    "rehearsed": {"measured_weight": "rehearsed"},
    "held_out_bounded": {"measured_weight": "held_out_bounded"},
    "expected_accuracy": {"measured_weight": "held_out", "measured_by": "expected_accuracy"},
    "consistency": {"measured_weight": "held_out", "measured_by": "consistency"},
    "per_block": {"measured_weight": "held_out", "per_block": True},
    "by_forgetting": {"old_texts": "by_forgetting"},
    "by_need": {"old_texts": "by_need"},
    "in_bursts": {"old_texts": "in_bursts"},
    "slow": {"consistency": 1, "consistent_with": "slow"},
    "right_and_known": {"consistency": 1, "consistent_with": "right_and_known"},
    "slow_deployed": {"slow_deployed": True},
    "flat_radius": {"flat_radius": 0.5},
    "new_beside_old": {"new_beside_old": True},
    "slots": {"slots": "by_forgetting"},
}


def test_nothing_tried_is_aim_and_every_option_changes_what_is_learned(tmp_path: Path) -> None:
    usual = learned(tmp_path / "aim", "aim")
    assert learned(tmp_path / "same", "aim-tried") == usual
    held = learned(tmp_path / "held", "aim", consistency=1)
    for name, options in TRIED.items():
        beside = held if "consistency" in options else usual
        assert learned(tmp_path / name, "aim-tried", **options) != beside, name
    assert "weight from expected_accuracy at" in (tmp_path / "expected_accuracy" / "ledger.jsonl").read_text()
    soft = learned(tmp_path / "soft", "aim-tried", {"asymmetric_loss": False}, earlier_weight=0.1)
    assert soft != learned(tmp_path / "all", "aim", {"asymmetric_loss": False})


def test_the_minimum_and_the_bound_of_a_parabola() -> None:
    from merganser_tried.losses import bounded, parabola_minimum

    def at(weight: float) -> float:
        return 2 * (weight - 0.3) ** 2 + 1

    assert parabola_minimum((at(0), at(0.5), at(1))) == pytest.approx(0.3)
    assert parabola_minimum((0.0, 1.0, 1.0)) == 0.0  # no minimum inside: the lower end
    assert parabola_minimum((3.0, 2.0, 1.0)) == 1.0
    assert parabola_minimum((1.0, 2.0, 4.0)) == 0.0  # its minimum lies before the line
    assert bounded(0.8, (0.0, 0.5, 1.0), 0.4) == pytest.approx(0.4, abs=0.01)
    assert bounded(0.8, (0.0, 0.1, 0.2), 0.4) == pytest.approx(0.8)


def test_slots_follow_what_is_lost() -> None:
    from merganser_tried.slots import allocate

    assert allocate(8, {"a": 3.0, "b": 1.0}, {"a": 10, "b": 10}) == {"a": 6, "b": 2}
    assert allocate(6, {"a": 1.0, "b": 0.0}, {"a": 4, "b": 4}) == {"a": 4, "b": 2}  # no more than there are
    assert allocate(2, {"a": 1.0, "b": 0.0}, {"a": 4, "b": 4}) == {"a": 1, "b": 1}  # each at least one
    assert allocate(9, {"a": 0.0, "b": 0.0}, {"a": 2, "b": 3}) == {"a": 2, "b": 3}


def test_earlier_labels_have_less_weight_in_the_softmax() -> None:
    from merganser_tried.steps import softened

    logits = torch.tensor([[1.0, 2.0, 0.5]])
    inputs = {"candidates": torch.tensor([[4, 5, 6]]), "labels": torch.tensor([1])}
    whole = functional.cross_entropy(logits, inputs["labels"])
    own = torch.tensor([5, 6])
    expected = -torch.log(logits[0, 1].exp() / (0.1 * logits[0, 0].exp() + logits[0, 1].exp() + logits[0, 2].exp()))
    assert torch.isclose(whole + softened(inputs, {"logits": logits}, own, 0.1), expected)


@pytest.mark.parametrize(
    ("reference", "loss", "factor"),
    [(0.25, 1.0, 0.5), (0.25, 0.1, 1.0), (None, 1.0, 1.0)],
    ids=["high", "low", "first"],
)
def test_a_high_loss_lowers_the_rate_of_a_step(reference: float | None, loss: float, factor: float) -> None:
    from merganser_tried.steps import RateByLoss

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    rate = RateByLoss(reference)
    rate.losses += [9.0, loss]
    rate.on_pre_optimizer_step(None, None, None, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor)
    assert rate.at_the_end() == loss  # the last quarter of two steps is one
