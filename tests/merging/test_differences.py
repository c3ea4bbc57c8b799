"""Agreement with mergekit and PEFT, and every known difference: the rows of differences.tsv, measured.

mergekit's answers were recorded in ``mergekit_golden.json`` by ``benchmarks/mergekit_conformance.py``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from merganser.checkpoints.dtypes import decode, encode
from merganser.merging.dare import dare
from merganser.merging.linear import linear
from merganser.merging.rules import RULES
from merganser.merging.ties import ties
from tests.merging.mergekit_cases import CASES, COLUMNS, ROWS, Case, inputs

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "mergekit_golden.json").read_text())
NAMED = {case.name: case for case in CASES}
DIFFERENT = {
    "ties-fraction",
    "breadcrumbs-fraction",
    "sce-fraction",
    "dare-random",
    "della-random",
    "ties-bfloat16",
    "linear-bfloat16",
}


def golden(name: str) -> np.ndarray:
    return np.array(GOLDEN["answers"][name], np.float32).reshape(ROWS, COLUMNS)


def ours(case: Case, **changes: Any) -> np.ndarray:
    models, base = inputs(case.models)
    if case.dtype == "bfloat16":
        models, base = [rounded(model) for model in models], rounded(base)
    rule = RULES[case.rule]
    positional: list[Any] = [models] if rule.base == "none" else [models, base]
    result: np.ndarray = rule.function(*positional, **{**case.ours, **changes})
    return result


def rounded(values: np.ndarray) -> np.ndarray:
    """Through bfloat16."""
    narrow = encode(values.copy(), "BF16")
    return decode(narrow.reshape(-1).view(np.uint8), "BF16", np.dtype(np.float32)).reshape(values.shape).copy()


def update(name: str) -> np.ndarray:
    return golden(name) - inputs(NAMED[name].models)[1]


@pytest.mark.parametrize("name", [case.name for case in CASES if case.name not in DIFFERENT])
def test_agrees_with_the_recorded_answers(name: str) -> None:
    np.testing.assert_allclose(ours(NAMED[name]), golden(name), rtol=1e-6, atol=2e-6)


# One function per row of the table.


def mergekit_ties_count() -> None:
    models, base = inputs(3)
    merged = ties(models, base, weights=[1.0, 0.0, 0.0], density=0.33)
    assert np.count_nonzero(np.abs(merged - base) > 1e-7) == round(0.33 * 60) == 20
    # With 19 / 60 as density the recorded answer is met exactly.
    np.testing.assert_allclose(ours(NAMED["ties-fraction"], density=19 / 60), golden("ties-fraction"), atol=2e-6)
    assert np.abs(ours(NAMED["ties-fraction"]) - golden("ties-fraction")).max() > 0.01


def mergekit_breadcrumbs_count() -> None:
    case = NAMED["breadcrumbs-fraction"]
    same = ours(case, density=19 / 60, gamma=0.0)
    np.testing.assert_allclose(same, golden(case.name), atol=2e-6)
    assert np.abs(ours(case) - golden(case.name)).max() > 0.01


def mergekit_sce_count() -> None:
    case = NAMED["sce-fraction"]
    np.testing.assert_allclose(ours(case, select=19 / 60), golden(case.name), atol=2e-6)
    assert np.count_nonzero(np.abs(ours(case) - inputs(3)[1]) > 1e-6) == 20
    assert np.count_nonzero(np.abs(update(case.name)) > 1e-6) == 19


def mergekit_dare_rescale() -> None:
    models, base = inputs(1)
    whole = np.abs(models[0] - base).sum()
    assert np.abs(update("dare-random")).sum() == pytest.approx(whole, rel=1e-6)
    assert np.abs(ours(NAMED["dare-random"]) - base).sum() == pytest.approx(whole, rel=1e-6)
    kept = dare(models, base, density=0.4)
    nonzero = np.abs(kept - base) > 1e-6
    np.testing.assert_allclose((kept - base)[nonzero], ((models[0] - base) / 0.4)[nonzero], rtol=1e-4, atol=1e-6)


def mergekit_dare_mask() -> None:
    theirs = np.abs(update("dare-random")) > 1e-6
    mine = np.abs(ours(NAMED["dare-random"]) - inputs(1)[1]) > 1e-6
    assert not np.array_equal(theirs, mine)
    # Both keep 24 of 60 in the mean; four standard deviations of the binomial are 15.
    assert abs(int(theirs.sum()) - 24) < 15
    assert abs(int(mine.sum()) - 24) < 15


def mergekit_della_rescale() -> None:
    models, base = inputs(1)
    whole = np.abs(models[0] - base).sum()
    assert np.abs(update("della-random")).sum() == pytest.approx(whole, rel=1e-6)
    assert np.abs(ours(NAMED["della-random"]) - base).sum() == pytest.approx(whole, rel=1e-6)
    plain = ours(NAMED["della-random"], rescale="probability")
    assert abs(np.abs(plain - base).sum() / whole - 1.0) > 1e-3


def mergekit_ties_precision() -> None:
    exact = ours(NAMED["ties-bfloat16"])
    theirs = golden("ties-bfloat16")
    assert 0.15 < np.mean(rounded(exact) != theirs) < 0.3
    # In units of the last place of bfloat16 they are near all the same.
    near = np.isclose(theirs, exact, rtol=2**-6, atol=2**-7)
    assert near.mean() > 0.9


def mergekit_linear_precision() -> None:
    np.testing.assert_array_equal(rounded(ours(NAMED["linear-bfloat16"])), golden("linear-bfloat16"))


def _peft(function: str, weights: list[float], **arguments: Any) -> np.ndarray:
    models, base = inputs(2)
    updates = [torch.from_numpy(model - base) for model in models]
    result: np.ndarray = getattr(merge_utils, function)(updates, torch.tensor(weights), **arguments).numpy()
    return result


def peft_ties_half() -> None:
    models, base = inputs(2)
    theirs = _peft("ties", [0.5, 0.5], density=0.5)
    mine = ties(models, base, weights=[0.5, 0.5], density=0.5) - base
    np.testing.assert_allclose(theirs, mine / 2, atol=1e-6)


def peft_ties_order() -> None:
    models, base = inputs(2)
    theirs = _peft("ties", [2.0, 1.0], density=0.8)
    mine = ties(models, base, weights=[2.0, 1.0], density=0.8) - base
    assert np.linalg.norm(theirs - mine) / np.linalg.norm(mine) == pytest.approx(0.943, abs=0.005)
    # Their election ignores the weights: where updates of opposite sign meet, ours may side with the other one.
    assert np.any(np.sign(theirs) * np.sign(mine) < 0)


def peft_linear_factors() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(2, 8, 64))
    b = generator.normal(size=(2, 64, 8))
    updates = [b[i] @ a[i] for i in range(2)]
    right = linear(updates, weights=[0.5, 0.5])
    # PEFT's linear adds each factor apart, by this function and the roots of the weights.
    roots = torch.full((2,), 0.5).sqrt()
    sums = [merge_utils.task_arithmetic([torch.from_numpy(part) for part in parts], roots) for parts in (b, a)]
    apart = (sums[0] @ sums[1]).numpy()
    assert np.linalg.norm(apart - right) / np.linalg.norm(right) > 0.5


def peft_dare_rescale() -> None:
    torch.manual_seed(0)
    models, base = inputs(2)
    theirs = _peft("dare_linear", [1.0, 0.0], density=0.5)
    kept = theirs != 0
    np.testing.assert_allclose(theirs[kept], ((models[0] - base) / 0.5)[kept], rtol=1e-5)
    mine = dare(models, base, weights=[1.0, 0.0], density=0.5) - base
    near = np.isclose(mine, (models[0] - base) / 0.5, atol=1e-5) | np.isclose(mine, 0, atol=1e-5)
    assert near.all()


with open(HERE / "differences.tsv", encoding="utf-8") as _file:
    ROWS_OF_TABLE = list(csv.DictReader(_file, delimiter="\t"))


@pytest.mark.parametrize("row", [row["id"] for row in ROWS_OF_TABLE])
def test_known_difference(row: str) -> None:
    check: Callable[[], None] = globals()[row.replace("-", "_")]
    check()


def test_the_table_names_the_recorded_version() -> None:
    assert {row["library"] for row in ROWS_OF_TABLE} == {f"mergekit {GOLDEN['mergekit']}", "peft"}
