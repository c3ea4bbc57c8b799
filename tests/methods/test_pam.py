"""PAM: which entries are reset, and the average over tasks."""

from __future__ import annotations

import pytest
import torch

from merganser.methods.pam import Pam, PamOptions, opposed
from merganser.weights import Weights
from tests.methods.plain import Holder, context, fire, random_weights, set_to

SHAPES = {"q.lora_A.default.weight": (2, 5), "q.lora_B.default.weight": (4, 2)}


def test_only_the_largest_merged_entries_count_and_zeros_oppose_nothing() -> None:
    merged = torch.tensor([3.0, -2.0, 1.0, 0.5, 0.0, -4.0])
    update = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, 0.0])
    assert opposed(update, merged, 0.5).tolist() == [True, False, False, False, False, False]
    assert opposed(update, merged, 0.7).tolist() == [True, False, True, False, False, False]
    assert opposed(update, merged, 1.0).tolist() == [True, False, True, True, False, False]
    assert not opposed(update, merged, 0.0).any()
    assert not opposed(update, merged, 0.1).any()


@pytest.mark.parametrize("reset", ["zero", "merged"])
def test_alignment_of_factors_by_hand(reset: str) -> None:
    merged, trained = random_weights(0, SHAPES), random_weights(1, SHAPES)
    module = Holder(merged)
    method = Pam(PamOptions(every=4, share=0.5, reset=reset))
    method.begin_task()
    (callback,) = method.callbacks(context(module, 2))
    expected = {}
    for name, value in trained.items():
        bound = sorted(abs(x) for x in merged[name].flatten().tolist())[-(value.numel() // 2)]
        rows = [
            (0.0 if reset == "zero" else m) if abs(m) >= bound and m * v < 0 else v
            for m, v in zip(merged[name].flatten().tolist(), value.flatten().tolist(), strict=True)
        ]
        expected[name] = torch.tensor(rows).view_as(value)
        assert not torch.equal(expected[name], value)
    set_to(module, trained)
    fire(callback, "on_step_end", step=3)
    assert all(torch.equal(value, trained[name]) for name, value in Weights.of(module).items())
    fire(callback, "on_step_end", step=4)
    assert all(torch.equal(value, expected[name]) for name, value in Weights.of(module).items())


def test_whole_weights_are_aligned_as_updates_of_the_pretrained_ones() -> None:
    shapes = {"w": (6,)}
    origin = random_weights(0, shapes)
    merged = {"w": origin["w"] + torch.tensor([1.0, -1.0, 2.0, 0.1, 0.0, 0.0])}
    trained = {"w": origin["w"] + torch.tensor([-1.0, -1.0, 1.0, -1.0, 1.0, 1.0])}
    module = Holder(merged)
    method = Pam(PamOptions(every=1, share=0.5))
    method.begin_task()
    (callback,) = method.callbacks(context(module, 2, [origin, merged], lora=False))
    set_to(module, trained)
    fire(callback, "on_step_end", step=1)
    expected = trained["w"].clone()
    expected[0] = origin["w"][0]  # the only one of the three largest that points the other way
    assert torch.equal(Weights.of(module)["w"], expected)


def test_the_model_is_the_mean_of_all_tasks() -> None:
    tasks = [random_weights(seed, SHAPES) for seed in range(1, 5)]
    origin = random_weights(0, SHAPES)
    module, rows = Holder(origin), [origin]
    method = Pam(PamOptions(share=0.0))
    for index, trained in enumerate(tasks, 1):
        given = context(module, index, rows)
        method.begin_task()
        assert len(method.callbacks(given)) == (index > 1)
        set_to(module, trained)
        method.after_task(given)
        rows.append(dict(Weights.of(module).snapshot()))
        for name, value in rows[-1].items():
            torch.testing.assert_close(value, torch.stack([task[name] for task in tasks[:index]]).mean(0))
        if index == 1:
            assert method.records.merges == []
        else:
            (merge,) = method.records.merges
            assert (merge.cause, merge.step, merge.weight_new) == ("end", 10, pytest.approx(1 / index))
            assert merge.weight_new + merge.weight_old == pytest.approx(1)
            assert merge.norm_new == pytest.approx(Weights(trained).minus(Weights(origin)).l2())
            assert merge.norm_old == pytest.approx(Weights(rows[-2]).minus(Weights(origin)).l2())
            assert merge.learning_signal == pytest.approx(Weights(trained).minus(Weights(rows[-2])).l1() / 10)
