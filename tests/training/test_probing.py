"""Which examples are probed: fresh ones for every step, or one set spread over tasks and labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from merganser.training.aim.probing import Probes, ReplayedLosses, spread_over_groups


def identity(examples: list[Any]) -> dict[str, Any]:
    return {"examples": examples}


def test_fresh_probes_are_a_function_of_seed_and_step() -> None:
    memory = list(range(30))
    probes, other = Probes(memory, 5, 3, identity), Probes(memory, 5, 4, identity)
    drawn = {step: probes.batch(step)["examples"] for step in (1, 2, 7)}
    assert all(len(set(examples)) == 5 and set(examples) <= set(memory) for examples in drawn.values())
    assert len(set(map(tuple, drawn.values()))) == 3
    assert probes.batch(1)["examples"] == drawn[1] != other.batch(1)["examples"]


def test_a_fixed_set_is_collated_once_and_never_changes() -> None:
    calls: list[list[Any]] = []

    def collate(examples: list[Any]) -> dict[str, Any]:
        calls.append(examples)
        return identity(examples)

    memory = list(range(30))
    probes = Probes(memory, 5, 3, collate, "fixed")
    assert [probes.batch(step) for step in (1, 2, 99)] == [identity(calls[0])] * 3
    assert len(calls) == 1
    assert len(set(calls[0])) == 5
    again, other = (Probes(memory, 5, seed, identity, "fixed").batch(1)["examples"] for seed in (3, 4))
    assert again == calls[0]
    assert other != calls[0]


@given(
    groups=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1, max_size=40),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_fixed_set_is_spread_over_tasks_and_their_labels(
    groups: list[tuple[str, str]], share: float, seed: int
) -> None:
    number = max(1, int(share * len(groups)))
    chosen = spread_over_groups(groups, number, np.random.default_rng(seed))
    assert len(set(chosen)) == number
    even(Counter(task for task, _ in groups), Counter(groups[position][0] for position in chosen))
    for task in {task for task, _ in groups}:
        even(
            Counter(label for other, label in groups if other == task),
            Counter(groups[position][1] for position in chosen if groups[position][0] == task),
        )


def even(there: Counter[str], taken: Counter[str]) -> None:
    """No group gave more than one example more than another that still had some to give."""
    for group in there:
        if taken[group] < there[group]:
            assert taken[group] >= max(taken[other] for other in there) - 1


def test_replayed_losses_are_those_since_they_were_last_taken() -> None:
    losses = ReplayedLosses()
    assert losses.take() is None
    for loss in (1.0, 2.0, 6.0):
        losses.add(loss)
    resumed = ReplayedLosses()
    resumed.load_state(losses.state())
    assert losses.take() == resumed.take() == 3.0
    assert losses.take() is None
    losses.add(5.0)
    assert losses.take() == 5.0
