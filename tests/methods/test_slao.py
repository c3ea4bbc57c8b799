"""SLAO: orthonormal starts, and merging of B alone."""

from __future__ import annotations

import math

import pytest
import torch

from merganser.config import check_config
from merganser.errors import InputError
from merganser.methods.slao import Slao, SlaoOptions, orthonormal_rows
from merganser.weights import Weights
from tests.methods.plain import Holder, context, random_weights, set_to

A, B = "q.lora_A.default.weight", "q.lora_B.default.weight"
SHAPES = {A: (3, 7), B: (5, 3)}


def test_the_start_is_an_orthonormal_basis_of_the_same_rows() -> None:
    a = random_weights(0, SHAPES)[A]
    basis = orthonormal_rows(a)
    torch.testing.assert_close(basis @ basis.T, torch.eye(3))
    torch.testing.assert_close(a @ basis.T @ basis, a)  # the rows of a lie in its span
    # Gram-Schmidt by hand
    rows: list[torch.Tensor] = []
    for row in a.double():
        rest = row - sum((row @ done) * done for done in rows)  # type: ignore[arg-type]
        rows.append(rest / rest.norm())
    torch.testing.assert_close(basis.double(), torch.stack(rows), atol=1e-5, rtol=0)
    torch.testing.assert_close(orthonormal_rows(basis), basis)
    wide = orthonormal_rows(random_weights(1, {"a": (4, 2)})["a"])
    torch.testing.assert_close(wide, torch.cat([wide[:2], torch.zeros(2, 2)]))


def test_three_tasks_by_hand() -> None:
    origin = random_weights(0, SHAPES)
    module, rows = Holder(origin), [origin]
    method = Slao(SlaoOptions())
    merged_b = None
    for index in (1, 2, 3):
        before = {name: value.clone() for name, value in Weights.of(module).items()}  # the last task's own
        given = context(module, index, rows)
        method.begin_task()
        assert method.callbacks(given) == []
        start = Weights.of(module)
        torch.testing.assert_close(start[A], before[A] if index == 1 else orthonormal_rows(before[A]))
        assert torch.equal(start[B], before[B])
        trained = random_weights(index, SHAPES)
        set_to(module, trained)
        method.after_task(given)
        merged_b = trained[B] if merged_b is None else merged_b + (trained[B] - merged_b) / math.sqrt(index)
        assert torch.equal(Weights.of(module)[A], trained[A])
        torch.testing.assert_close(Weights.of(module)[B], merged_b)
        rows.append(dict(Weights.of(module).snapshot()))
        assert [merge.weight_new for merge in method.records.merges] == (
            [] if index == 1 else [pytest.approx(1 / math.sqrt(index))]
        )
        set_to(module, trained)  # the next task starts from the task's own weights


def test_whole_weights_are_refused_before_work() -> None:
    with pytest.raises(InputError, match="works on an adapter's factors"):
        check_config({"model": {"name": "m", "kind": "causal", "lora": None}, "method": "slao"}, "file")
