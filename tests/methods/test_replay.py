"""Options of replay: rows by share, spacing in steps and in model time; its formula is in ``test_methods.py``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from merganser.methods.replay import Replay, ReplayOptions
from merganser.methods.shared.rehearsal import Rehearsal
from merganser.training.determinism import derive_seed
from merganser.training.options import TrainingOptions
from merganser.training.records import TaskRecords
from merganser.training.rehearsal import MemoryBatches
from tests.methods import plain
from tests.methods.test_methods import MEMORY, collate, context


def rehearsed(batches: int, batch: int = 4, method: Replay | None = None, **options: Any) -> list[float]:
    """The loss on the memory beside each of so many batches, one per optimizer step, and the rows of all."""
    method = method or Replay(ReplayOptions(**options))
    given = context(MEMORY, batch)
    callbacks, penalty = method.callbacks(given), method.penalty(given)
    assert penalty is not None
    module, losses = given.backbone.module, []
    for callback in callbacks:
        plain.fire(callback, "on_train_begin", model=module)
    for step in range(batches):
        losses.append(penalty(module, step, {}, {}).item())
        for callback in callbacks:
            with torch.no_grad():
                module.w += 1.0  # type: ignore[operator]
            plain.fire(callback, "on_step_end", step + 1)
    assert method.task_state().values["draws"] <= batches
    return [*losses, float(method.records.cost.examples_rehearsed)]


def test_a_share_is_carried_over_from_batch_to_batch() -> None:
    options = ReplayOptions(share=0.05)
    before = [options.rows_before(16, number) for number in range(11)]
    assert [after - first for first, after in pairwise(before)] == [1, 1, 0, 1, 1, 1, 1, 0, 1, 1]
    assert options.rows_before(16, 1000) == 800
    assert options.most_rows(TrainingOptions(batch=16), 100) == 1
    assert ReplayOptions(share=0.3).most_rows(TrainingOptions(batch=16), 100) == 5
    assert ReplayOptions(share=0.3).most_rows(TrainingOptions(batch=16), 3) == 3
    assert options.most_rows(TrainingOptions(batch=16), 0) is None


def test_rows_by_share_walk_through_the_memory() -> None:
    order = [row["x"] for row in MemoryBatches(MEMORY, 1, derive_seed(3, "replay")).rows(0, 6)]
    expected = [0.0, (2 * order[0]) ** 2] * 3
    found = rehearsed(6, share=0.125)  # half a row per batch
    expected = [(2 * x) ** 2 if x else 0.0 for x in (order[0], 0, order[1], 0, order[2], 0)]
    assert found == [*map(pytest.approx, expected), 3.0]


def test_a_whole_share_is_the_default_bit_for_bit() -> None:
    assert rehearsed(5, share=1.0) == rehearsed(5) == rehearsed(5, batch=4, every=1)


def test_every_so_many_steps() -> None:
    often, seldom = rehearsed(4, weight=0.5), rehearsed(12, weight=0.5, every=3)
    assert seldom[:-1] == [x for loss in often[:-1] for x in (0.0, 0.0, loss)]
    assert seldom[-1] == often[-1] == 16


def test_bursts_in_model_time() -> None:
    # Updates of equal length: a day is two steps, and moments come after steps 2, 4, 8 and 14.
    found = rehearsed(16, spacing="model_time", day_steps=2, burst=1, weight=1.0)
    assert [step for step, loss in enumerate(found[:-1], 1) if loss] == [3, 5, 9, 15]
    by_default = rehearsed(10, spacing="model_time", day_steps=2)  # six examples in batches of four: two steps
    assert [step for step, loss in enumerate(by_default[:-1], 1) if loss] == [3, 4, 5, 6, 9, 10]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 2, "share": 0.1},
        {"share": 0.0},
        {"share": 1.5},
        {"every": 2, "spacing": "model_time"},
        {"burst": 2},
        {"day_steps": 5},
    ],
)
def test_options_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"keep one|greater than|less than|has no effect"):
        ReplayOptions(**wrong)


def test_rows_of_the_memory_are_those_of_its_batches() -> None:
    batches = MemoryBatches(MEMORY, 4, 9)
    assert collate(batches.rows(4, 8))["x"].tolist() == [row["x"] for d in (1, 2) for row in batches.rehearsal(d)]


ROWS = MemoryBatches.rows


@pytest.mark.parametrize(("share", "size"), [(0.25, 4), (0.3, 3), (0.05, 4), (0.05, 3)])
def test_examples_of_several_batches_are_read_in_one_pass(share: float, size: int) -> None:
    """The same examples in the same order, those of so many batches beside the last of them; each batch counts once."""
    given = context(MEMORY)

    def read(batches_per_pass: int) -> list[tuple[list[float], float]]:
        """Return the examples beside each of 24 batches, and their loss."""
        found: list[tuple[list[float], float]] = []
        of_batch: list[list[float]] = []

        def rows(self: MemoryBatches, first: int, count: int) -> list[Any]:
            examples = ROWS(self, first, count)
            of_batch.append([row["x"] for row in examples])
            return examples

        penalty = Rehearsal(ReplayOptions(share=share), "replay", batches_per_pass=batches_per_pass).penalty(
            given, TaskRecords()
        )
        assert penalty is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MemoryBatches, "rows", rows)
            for step in range(24):
                of_batch.clear()
                loss = penalty(given.backbone.module, step, {}, {}).item()
                found.append((of_batch[0] if of_batch else [], loss))
        return found

    each, together = read(1), read(size)
    for start in range(0, 24, size):
        group = each[start : start + size]
        *without, (examples, loss) = together[start : start + size]
        assert without == [([], 0.0)] * (size - 1)
        assert examples == [x for batch, _ in group for x in batch]
        times = sum(bool(batch) for batch, _ in group)
        mean = float((2 * torch.tensor(examples)).pow(2).mean()) if examples else 0.0
        assert loss == pytest.approx(times * mean)
    assert any(examples for examples, _ in together)
