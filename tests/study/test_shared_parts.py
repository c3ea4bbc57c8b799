"""Parts that are the same for several runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merganser.config import RunConfig, check_config
from merganser.evaluation import ScoredTask
from merganser.learner.shared_parts import SharedParts, TrainingData
from merganser.learner.shared_tokens import SharedTokens
from merganser.models.base import Lengths
from merganser.models.options import ModelOptions
from merganser.streams.task import Example, Task
from merganser.training.records import TaskRecords
from merganser.training.trainer import Outcome
from tests.learner.toys import contents

TASK = Task("mood", [Example("fine", "good")], (), [Example("poor", "bad"), Example("great", "good")])


class Weights:
    """In the place of a backbone: one number."""

    module = SimpleNamespace()
    precision, weights, device = "fp32", "", torch.device("cpu")

    def __init__(self) -> None:
        self.value = 0.0

    def trainable(self) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor([self.value])}

    def save_weights(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "value").write_text(json.dumps(self.value))

    def load_weights(self, folder: Path) -> None:
        self.value = json.loads((folder / "value").read_text())


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    """Makes the parts of one more run, in one folder for all."""
    return lambda: SharedParts(tmp_path, SimpleNamespace(config={}, versions={}))  # type: ignore[arg-type]


def config(**evaluation: Any) -> RunConfig:
    return check_config({"model": {"name": "owner/model", "kind": "causal"}, "evaluation": evaluation}, "here")


def trained(parts: SharedParts, backbone: Any, meanwhile: Any = lambda: None) -> Outcome:
    def train() -> Outcome:
        meanwhile()
        backbone.value = 1.0
        return Outcome(3, {"": (4, 5)}, 0.1)

    data = TrainingData([{"input_ids": [1, 2]}], None, 0)
    return parts.train(backbone, config(), data, TaskRecords("mood", 1, lambda event: None), train)


def test_two_runs_that_make_a_part_at_the_same_time_both_go_on(parts: Any) -> None:
    first, second, third = Weights(), Weights(), Weights()
    outcome = trained(parts(), first, meanwhile=lambda: trained(parts(), second))
    found = parts()
    assert trained(found, third, meanwhile=lambda: pytest.fail("trained again")).steps == outcome.steps == 3
    assert first.value == second.value == third.value == 1.0
    assert found.reused == ["training of mood"]


@pytest.mark.parametrize("file", ["outcome.json", "signals.jsonl", "weights/value"])
@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"0"), lambda file: file.unlink()])
def test_a_damaged_part_is_made_again(file: str, damage: Any, parts: Any, tmp_path: Path) -> None:
    trained(parts(), Weights())
    (folder,) = (tmp_path / "training").iterdir()
    whole = contents(folder)
    damage(folder / file)
    again, found = Weights(), parts()
    trained(found, again)
    assert (again.value, found.reused) == (1.0, [])
    made = contents(folder)
    assert made.keys() == whole.keys()
    assert all(made[name] == whole[name] for name in ("signals.jsonl", "weights/value"))
    trained(third := parts(), Weights(), meanwhile=lambda: pytest.fail("trained again"))
    assert third.reused == ["training of mood"]


def test_answers_are_those_of_one_engine_and_count_for_every_run_that_has_them(parts: Any) -> None:
    made: list[str] = []

    def score(tasks: Sequence[Task]) -> dict[str, ScoredTask]:
        end = time.process_time() + 0.02
        while tasks and time.process_time() < end:
            pass
        made.extend(task.name for task in tasks)
        return {task.name: ScoredTask(("bad", "bad"), (1.0, 0.0)) for task in tasks}

    first, second = parts(), parts()
    answers = [run.answer(Weights(), config(), [TASK], score) for run in (first, second)]
    assert answers[0] == answers[1]
    assert made == ["mood"]
    assert first.saved_seconds == 0.0
    assert second.saved_seconds >= 0.02
    parts().answer(Weights(), config(engine="continuous"), [TASK], score)
    assert made == ["mood", "mood"]


def test_what_a_model_computes_is_of_one_kind_of_machine_and_tokens_of_all(tmp_path: Path) -> None:
    asked = []
    for gpu in ("Some GPU", "Another GPU", "Some GPU"):
        parts = SharedParts(tmp_path, SimpleNamespace(config={}, versions={"gpu": gpu}))  # type: ignore[arg-type]
        trained(parts, Weights())
        asked.append((Asked(parts), parts))
        asked[-1][0]()
    assert [(each.made, parts.reused) for each, parts in asked] == [(2, []), (1, []), (0, ["training of mood"])]


class Asked:
    """Tokens and vectors of one more run; ``made`` counts those that were not found."""

    def __init__(self, parts: SharedParts, **options: Any) -> None:
        given = ModelOptions.model_validate({"name": "owner/model", "kind": "matcher", **options})
        backbone: Any = SimpleNamespace(
            options=given, lengths=Lengths(8, 8), weights="fp32", device=torch.device("cpu")
        )
        self.tokens = SharedTokens(parts, backbone)
        self.made = 0

    def __call__(self, meanwhile: Any = lambda: None) -> tuple[list[Any], torch.Tensor]:
        def count(value: Any) -> Any:
            self.made += 1
            meanwhile()
            return value

        rows = self.tokens.tokens("inputs", ["a b", "c"], lambda: count([[1, 2], [3]]))
        return rows, self.tokens.vectors(["good"], lambda: count(torch.tensor([[0.6, 0.8]])))


def test_tokens_and_label_vectors_are_made_once_and_damaged_ones_again(parts: Any, tmp_path: Path) -> None:
    first, second, later, pooled = Asked(parts()), Asked(parts()), Asked(parts()), Asked(parts(), pooling="cls")
    first(meanwhile=second)  # at the same time
    rows, vectors = later()
    assert rows == [[1, 2], [3]]
    assert vectors.tolist() == torch.tensor([[0.6, 0.8]]).tolist()
    assert (first.made, second.made, later.made) == (1, 2, 0)
    pooled()
    assert pooled.made == 1  # tokens do not depend on it
    for file in [*(tmp_path / "tokens").iterdir(), *(tmp_path / "labels").iterdir()]:
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
    again = Asked(parts())
    assert again()[0] == [[1, 2], [3]]
    assert again.made == 2
    assert later()[0] == [[1, 2], [3]]
    assert later.made == 0
