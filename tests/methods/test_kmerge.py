"""K-Merge: which model takes a task in, and which answers it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merganser.errors import InputError
from merganser.methods.kmerge import KMerge, KMergeOptions, similarity
from merganser.weights import Weights
from tests.methods.plain import Holder, context, random_weights, set_to

SHAPES = {
    "k.lora_A.default.weight": (2, 6),
    "k.lora_B.default.weight": (4, 2),
    "q.lora_A.default.weight": (2, 5),
    "q.lora_B.default.weight": (3, 2),
}
ORIGIN = random_weights(0, SHAPES)


def test_similarity_is_the_mean_cosine_of_the_products() -> None:
    one, other = random_weights(1, SHAPES), random_weights(2, SHAPES)
    expected = 0.0
    for layer in "kq":
        products = [w[f"{layer}.lora_B.default.weight"] @ w[f"{layer}.lora_A.default.weight"] for w in (one, other)]
        expected += float(torch.cosine_similarity(products[0].flatten(), products[1].flatten(), dim=0)) / 2
    origin = Weights(ORIGIN)
    assert similarity(Weights(one), Weights(other), origin) == pytest.approx(expected, abs=1e-5)
    assert similarity(Weights(one), Weights(one), origin) == pytest.approx(1)
    # The same product in other factors is the same adapter.
    turned = {n: 2 * v if ".lora_A." in n else v / 2 for n, v in one.items()}
    assert similarity(Weights(one), Weights(turned), origin) == pytest.approx(1)
    idle = {n: torch.zeros_like(v) if ".lora_B." in n else v for n, v in one.items()}
    assert similarity(Weights(one), Weights(idle), origin) == 0


def test_similarity_of_whole_weights_is_that_of_their_changes() -> None:
    shapes = {"a": (3, 3), "b": (4,)}
    origin, one, other = (random_weights(seed, shapes) for seed in range(3))
    cosines = [
        float(torch.cosine_similarity((one[n] - origin[n]).flatten(), (other[n] - origin[n]).flatten(), dim=0))
        for n in shapes
    ]
    found = similarity(Weights(one), Weights(other), Weights(origin))
    assert found == pytest.approx(sum(cosines) / 2, abs=1e-5)


def test_a_new_adapter_joins_the_one_most_like_it_as_the_mean_of_its_tasks(tmp_path: Path) -> None:
    """Tasks 3 and 5 are near task 1, task 4 is near task 2."""
    bases = [random_weights(seed, SHAPES) for seed in (1, 2)]
    near = [
        {n: bases[i][n] + 0.1 * v for n, v in random_weights(seed, SHAPES).items()}
        for i, seed in ((0, 3), (1, 4), (0, 5))
    ]
    tasks = [*bases, *near]
    rows = [ORIGIN]
    method = KMerge(KMergeOptions(models=2))
    for index, trained in enumerate(tasks, 1):
        module = Holder(ORIGIN)
        method.begin_task()
        set_to(module, trained)
        method.after_task(context(module, index, rows))
        rows.append(dict(Weights.of(module).snapshot()))
        assert len(method.slots) == min(index, 2)
        folder = tmp_path / str(index)
        folder.mkdir()
        method.save(folder)
        assert method.bytes_kept() == {"slots": sum(file.stat().st_size for file in folder.iterdir())}
        method = KMerge(KMergeOptions(models=2))
        method.load(folder)
    assert method.slots == [[1, 3, 5], [2, 4]]
    learned = {f"task {index}": index for index in range(1, 6)}
    assert method.answered_by(learned) == {"task 1": 5, "task 2": 4, "task 3": 5, "task 4": 4, "task 5": 5}
    for row, members in ((5, (0, 2, 4)), (4, (1, 3))):
        for name, value in rows[row].items():
            torch.testing.assert_close(value, torch.stack([tasks[i][name] for i in members]).mean(0))


def test_only_merges_are_in_the_ledger() -> None:
    method = KMerge(KMergeOptions(models=1))
    rows = [ORIGIN]
    for index in (1, 2):
        module = Holder(random_weights(index, SHAPES))
        method.begin_task()
        method.after_task(context(module, index, rows))
        rows.append(dict(Weights.of(module).snapshot()))
        assert [(m.cause, m.weight_new) for m in method.records.merges] == ([] if index == 1 else [("end", 0.5)])


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slots.json").write_text("{}")
    with pytest.raises(InputError, match=r"state in .* cannot be read"):
        KMerge(KMergeOptions()).load(tmp_path)
