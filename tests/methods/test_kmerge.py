"""K-Merge: which model takes a task in, and which answers it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from merganser.errors import InputError
from merganser.methods.kmerge import KMerge, KMergeOptions, combine_roots, similarity
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


def test_a_threshold_merges_although_there_is_room() -> None:
    """K-Merge++: task 2 is no more similar to task 1 than chance; task 3 is near task 2, of similarity .95 or more."""
    one, two, other = (random_weights(seed, SHAPES) for seed in (1, 2, 3))
    near = {name: two[name] + 0.1 * value for name, value in other.items()}
    origin = Weights(ORIGIN)
    assert similarity(Weights(one), Weights(two), origin) < 0.6
    assert similarity(Weights(near), Weights(two), origin) > 0.9
    for options, expected in (
        (KMergeOptions(models=3), [[1], [2], [3]]),
        (KMergeOptions(models=3, threshold=0.6), [[1], [2, 3]]),
        (KMergeOptions(models=3, threshold=1.0), [[1], [2], [3]]),
        (KMergeOptions(models=3, threshold=-1.0), [[1, 2, 3]]),
        (KMergeOptions(models=1, threshold=1.0), [[1, 2, 3]]),
    ):
        method, rows = KMerge(options), [ORIGIN]
        for index, trained in enumerate((one, two, near), 1):
            module = Holder(trained)
            method.begin_task()
            method.after_task(context(module, index, rows))
            rows.append(dict(Weights.of(module).snapshot()))
        assert method.slots == expected
        if expected == [[1], [2, 3]]:
            for name, value in rows[3].items():
                torch.testing.assert_close(value, (two[name] + near[name]) / 2)


@pytest.mark.parametrize(("share", "times"), [(1 / 2, 2.0), (1 / 3, 1.943)])
def test_compat_reference_combines_factors_as_peft_does(share: float, times: float) -> None:
    """The update of two equal adapters grows by (sqrt(w) + sqrt(1 - w))^2."""
    net = get_peft_model(nn.Sequential(nn.Linear(6, 4)), LoraConfig(r=2, lora_alpha=6, target_modules=["0"]))  # type: ignore[arg-type]
    net.add_adapter("other", LoraConfig(r=2, lora_alpha=6, target_modules=["0"]))
    layer = net.base_model.model[0]
    generator = torch.Generator().manual_seed(0)
    adapters = []
    for name in ("default", "other"):
        factors = {"k.lora_A.x": layer.lora_A[name].weight, "k.lora_B.x": layer.lora_B[name].weight}
        with torch.no_grad():
            for value in factors.values():
                value.normal_(generator=generator)
        adapters.append(Weights({key: value.detach().clone() for key, value in factors.items()}))
    net.add_weighted_adapter(["default", "other"], [share, 1 - share], "merged", combination_type="linear")
    expected = layer.get_delta_weight("merged")
    new, kept = adapters
    combined = new.snapshot()
    combine_roots(combined, kept, share)
    torch.testing.assert_close(3 * combined["k.lora_B.x"] @ combined["k.lora_A.x"], expected)
    equal = new.snapshot()
    combine_roots(equal, new, share)
    torch.testing.assert_close(
        equal["k.lora_B.x"] @ equal["k.lora_A.x"], times * new["k.lora_B.x"] @ new["k.lora_A.x"], rtol=1e-3, atol=1e-5
    )


def test_compat_reference_doubles_the_update_of_two_equal_tasks() -> None:
    rows = [ORIGIN]
    method = KMerge(KMergeOptions(models=1, compat="reference"))
    trained = random_weights(1, SHAPES)
    for index in (1, 2):
        module = Holder(trained)
        method.begin_task()
        method.after_task(context(module, index, rows))
        rows.append(dict(Weights.of(module).snapshot()))
    for name, value in rows[2].items():
        torch.testing.assert_close(value, 2**0.5 * trained[name])


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
