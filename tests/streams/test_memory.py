"""The rehearsal memory: budgets are kept, labels are even, draws repeat."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.streams.memory import allot, budget, in_force, memory_bytes, sample_memory, summarise_memory
from merganser.streams.options import MemoryOptions
from merganser.streams.sampling import generator, spread
from merganser.streams.task import Example

SUPERNI = Path(__file__).parents[2].parent / "shared" / "data" / "data_superni" / "train"


def labelled(**counts: int) -> list[Example]:
    """Interleaved examples with the given number per label."""
    examples = [Example(f"text {i} of {label}", label) for label, count in counts.items() for i in range(count)]
    return sorted(examples, key=lambda example: example.input)


def kept_per_label(examples: list[Example], options: MemoryOptions, seed: int = 0) -> dict[str, int]:
    labels = sorted({example.output for example in examples})
    return dict(Counter(example.output for example in sample_memory(examples, labels, options, seed)))


@pytest.mark.parametrize(
    ("share", "size", "wanted"),
    [(0.02, 1000, 20), (0.29, 100, 29), (0.02, 149, 2), (0.5, 3, 1), (1.0, 7, 7), (0.07, 100, 7)],
)
def test_budget_is_the_floor_of_the_share(share: float, size: int, wanted: int) -> None:
    assert budget(MemoryOptions(share=share), size) == wanted


def test_budget_by_number_and_by_minimum() -> None:
    assert budget(MemoryOptions(number=5), 100) == 5
    assert budget(MemoryOptions(number=500), 100) == 100
    assert budget(MemoryOptions(share=0.02, minimum_per_label=3), 100, [90, 8, 2]) == 8
    assert budget(MemoryOptions(share=0.5, minimum_per_label=3), 100, [90, 8, 2]) == 50
    assert budget(MemoryOptions(share=0.02, minimum_per_label=2), 10) == 2


def test_a_share_that_keeps_nothing_is_refused_with_one_that_works() -> None:
    with pytest.raises(InputError, match=r"share of 0\.02 keeps none of 30 .* at least 0\.0334") as caught:
        budget(MemoryOptions(), 30)
    assert "minimum_per_label: 1" in caught.value.remedy
    assert budget(MemoryOptions(share=0.0334), 30) == 1


def test_per_label_is_even_and_exhausts_small_labels() -> None:
    # 20 of 200: the labels with 2 and 4 texts give all, the other two share the remaining 14.
    examples = labelled(a=100, b=94, c=4, d=2)
    assert kept_per_label(examples, MemoryOptions(share=0.1)) == {"a": 7, "b": 7, "c": 4, "d": 2}


def test_per_label_gives_one_each_while_the_budget_lasts() -> None:
    examples = labelled(a=50, b=50, c=50)
    kept = kept_per_label(examples, MemoryOptions(number=2))
    assert sorted(kept.values()) == [1, 1]
    assert kept_per_label(examples, MemoryOptions(number=2, minimum_per_label=1)) == {"a": 1, "b": 1, "c": 1}
    drawn = {tuple(sorted(kept_per_label(examples, MemoryOptions(number=2), seed))) for seed in range(20)}
    assert len(drawn) == 3, "which labels go without is drawn, not always the last"


def test_free_text_counts_as_one_label() -> None:
    examples = [Example(f"in {i}", f"out {i}") for i in range(100)]
    assert len(sample_memory(examples, None, MemoryOptions(share=0.05), 0)) == 5


def test_reference_on_labels_keeps_the_share() -> None:
    # n = 20, 3 classes: 6 of each, topped up with 2 of any.
    examples = labelled(a=400, b=400, c=200)
    kept = kept_per_label(examples, MemoryOptions(sampler="reference"))
    assert sum(kept.values()) == 20
    assert min(kept.values()) >= 6
    # a class smaller than n // classes gives all it has
    assert kept_per_label(labelled(a=997, b=3), MemoryOptions(sampler="reference"))["b"] == 3


def test_reference_on_free_text_exceeds_and_is_refused() -> None:
    # 100 texts, 61 different outputs, budget 2: one text per output.
    examples = [Example(f"in {i}", f"out {min(i, 60)}") for i in range(100)]
    with pytest.raises(InputError, match=r"keep 61 of 100 .* 61 different outputs; the budget is 2\."):
        sample_memory(examples, None, MemoryOptions(sampler="reference"), 0)
    kept = sample_memory(examples, None, MemoryOptions(sampler="reference", allow_excess=True), 0)
    assert sorted(Counter(example.output for example in kept).values()) == [1] * 61


def test_reference_with_budget_zero_still_keeps_one_per_output() -> None:
    examples = labelled(a=10, b=10)
    kept = sample_memory(examples, None, MemoryOptions(sampler="reference", allow_excess=True), 0)
    assert sorted(example.output for example in kept) == ["a", "b"]


@pytest.mark.skipif(not SUPERNI.is_dir(), reason="the AimMerging data of ../shared/data is not there")
@pytest.mark.parametrize(("task", "size", "outputs"), [("task181", 338, 146), ("task639", 142, 141)])
def test_reference_on_superni_keeps_one_text_per_output(task: str, size: int, outputs: int) -> None:
    rows = json.loads((SUPERNI / f"{task}_T5.json").read_text(encoding="utf-8"))
    examples = [Example(row["input"], row["output"]) for row in rows]
    assert len(examples) == size
    options = MemoryOptions(sampler="reference", allow_excess=True)
    kept = sample_memory(examples, None, options, 1)
    assert len(kept) == outputs
    assert summarise_memory(kept, examples, None, options).budget == int(0.02 * size)
    assert len(sample_memory(examples, None, MemoryOptions(), 1)) == int(0.02 * size)


def test_examples_outside_the_labels_and_no_examples() -> None:
    with pytest.raises(InputError, match="'b' is the answer of a training text but not a label"):
        sample_memory(labelled(a=5, b=5), ["a", "c"], MemoryOptions(number=2), 0)
    with pytest.raises(InputError, match="no training texts"):
        sample_memory([], None, MemoryOptions(number=2), 0)
    with pytest.raises(InputError, match="Seed -1 is negative"):
        sample_memory(labelled(a=5), None, MemoryOptions(number=2), -1)


def test_bytes_are_utf8() -> None:
    assert memory_bytes([Example("é", "ab"), Example("✓", "")]) == 2 + 2 + 3


def test_summary_counts_what_is_kept() -> None:
    examples = labelled(a=90, b=10)
    options = MemoryOptions(share=0.1)
    kept = sample_memory(examples, {"b", "a"}, options, 3)
    summary = summarise_memory(kept, examples, {"b", "a"}, options)
    assert summary.examples == summary.budget == 10
    assert summary.share == 0.1
    assert summary.per_label == {"a": 5, "b": 5}
    assert summary.bytes == sum(len(f"text {e.input.split()[1]} of x") + 1 for e in kept)


counts_strategy = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 30), min_size=1)


@settings(max_examples=60, deadline=None)
@given(counts=counts_strategy, number=st.integers(1, 60), seed=st.integers(0, 5), data=st.data())
def test_properties_of_the_honest_samplers(counts: dict[str, int], number: int, seed: int, data: st.DataObject) -> None:
    examples = labelled(**counts)
    labels = data.draw(st.permutations(sorted(counts)))
    for sampler in ("per_label", "uniform"):
        options = MemoryOptions.model_validate({"number": number, "sampler": sampler})
        kept = sample_memory(examples, labels, options, seed)
        assert len(kept) == min(number, len(examples))
        assert len(set(kept)) == len(kept)
        assert kept == [example for example in examples if example in set(kept)], "in the order of the examples"
        assert kept == sample_memory(examples, set(labels), options, seed), "the order of the labels does not matter"
    share = Counter(e.output for e in sample_memory(examples, labels, MemoryOptions(number=number), seed))
    open_labels = [share[label] for label in counts if share[label] < counts[label]]
    if open_labels:
        assert max(share.values()) - min(open_labels) <= 1


def test_different_seeds_give_different_memories() -> None:
    examples = labelled(a=500, b=500)
    memories = {tuple(sample_memory(examples, ["a", "b"], MemoryOptions(), seed)) for seed in range(5)}
    assert len(memories) == 5


@given(total=st.integers(0, 50), counts=st.lists(st.integers(0, 12), max_size=6))
def test_spread_gives_out_all_it_can(total: int, counts: list[int]) -> None:
    given_out = spread(total, counts, generator(0, "test"))
    assert sum(given_out) == min(total, sum(counts))
    assert all(got <= count for got, count in zip(given_out, counts, strict=True))


def test_surprise_keeps_the_texts_of_highest_loss_and_mixed_a_random_half() -> None:
    examples = labelled(a=4, b=4)
    losses = [0.1, 0.8, 0.3, 0.8, 0.2, 0.9, 0.0, 0.5]
    kept = sample_memory(examples, ["a", "b"], MemoryOptions(number=3, sampler="surprise"), 0, losses)
    assert kept == [examples[i] for i in (1, 3, 5)]  # of equal ones the earlier
    mixed = MemoryOptions(number=4, sampler="mixed")
    drawn = [sample_memory(examples, ["a", "b"], mixed, seed, losses) for seed in range(8)]
    assert all(len(set(kept)) == 4 for kept in drawn)
    # Two of the three that surprise most; the other two are one of each label, drawn, and may be such as well.
    assert all(sum(examples.index(example) in (1, 3, 5) for example in kept) >= 2 for kept in drawn)
    assert len({tuple(kept) for kept in drawn}) > 3
    with pytest.raises(ValueError, match="There are 1 losses for 8 texts"):
        sample_memory(examples, ["a", "b"], mixed, 0, [0.5])
    with pytest.raises(ValueError, match="surprise_when works with sampler surprise or mixed"):
        MemoryOptions(surprise_when="after")


@given(total=st.integers(0, 40), sizes=st.lists(st.integers(0, 12), max_size=7))
def test_slots_in_total_are_even_and_earlier_tasks_only_give_up(total: int, sizes: list[int]) -> None:
    slots = allot(total, sizes)
    assert sum(slots) == min(total, sum(sizes))
    assert all(slot <= size for slot, size in zip(slots, sizes, strict=True))
    unfilled = [slot for slot, size in zip(slots, sizes, strict=True) if slot < size]
    assert not unfilled or max(slots) - min(unfilled) <= 1
    before = allot(total, sizes[:-1])
    assert all(now <= earlier for now, earlier in zip(slots, before, strict=False))


@pytest.mark.parametrize("sampler", ["per_label", "uniform", "surprise", "mixed"])
def test_of_a_total_any_beginning_of_a_tasks_texts_is_what_so_many_slots_would_keep(sampler: str) -> None:
    examples, losses = labelled(a=6, b=6), [float(i % 5) for i in range(12)]
    options = MemoryOptions.model_validate({"total": 8, "sampler": sampler})
    whole, few = (sample_memory(examples, ["a", "b"], options, 3, losses, slots) for slots in (None, 4))
    assert len(whole) == 8
    assert whole[:4] == few
    if sampler == "per_label":
        assert sorted(example.output for example in few) == ["a", "a", "b", "b"]
    stored = [*(("one", example) for example in whole), *(("two", example) for example in few)]
    assert in_force(stored, 5) == [stored[i] for i in (0, 1, 2, 8, 9)]
    assert in_force(stored, None) == stored
    assert summarise_memory(few, examples, ["a", "b"], options, 4).budget == 4


@pytest.mark.parametrize(
    "wrong",
    [{"share": 0.1}, {"number": 3}, {"minimum_per_label": 1}, {"sampler": "reference"}, {"total": 0}],
)
def test_a_total_with_another_budget_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"keep one|not bounded|keeps nothing"):
        MemoryOptions(**{"total": 9, **wrong})
