"""The compiled kernels do bit for bit what numpy does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merganser.checkpoints.dtypes import decode, encode
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.files.safetensors_file import read_header
from merganser.merging.tensors import BLOCK
from tests.checkpoints.conftest import write_folder

kernels: Any = pytest.importorskip(
    "merganser.checkpoints.kernels", reason="numba is not installed", exc_type=ImportError
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """A base and two models whose large tensor is longer than a slice, per storage type."""
    generator = np.random.default_rng(0)
    size = 4 * BLOCK + 3000
    base = {
        "large.weight": generator.normal(size=size).astype(np.float32),
        "small.weight": generator.normal(size=(3, 5)).astype(np.float32),
    }
    found: dict[str, dict[str, Path]] = {}
    for dtype in ("BF16", "F16", "F32"):
        root = tmp_path_factory.mktemp(dtype)
        found[dtype] = {"base": write_folder(root / "base", base, dtype=dtype)}
        for name in ("a", "b", "c"):
            # Rounding to bfloat16 makes many equal updates, and so ties at the cut.
            tuned = {
                k: v + np.float32(0.02) * generator.normal(size=v.shape).astype(np.float32) for k, v in base.items()
            }
            tuned["large.weight"][::7] = base["large.weight"][::7]
            found[dtype][name] = write_folder(root / name, tuned, dtype=dtype)
    return found


RULES: list[dict[str, Any]] = [
    {"rule": "linear"},
    {"rule": "slerp", "options": {"t": 0.3}},
    {"rule": "task_arithmetic", "options": {"scale": 0.4}},
    {"rule": "ema"},
    {"rule": "magmax"},
    {"rule": "ties", "density": 0.3},
    {"rule": "ties", "density": 0.9, "options": {"normalize": False, "scale": 0.7}},
    {"rule": "dare_ties", "density": 0.4},
    {"rule": "dare_linear", "density": 0.4, "options": {"rescale": "l1"}},
    {"rule": "breadcrumbs", "density": 0.5, "options": {"normalize": True}},
    {"rule": "breadcrumbs_ties", "density": 0.5},
    # With a gamma of 0.01 nothing is cut below: only outliers are dropped.
    {"rule": "breadcrumbs", "density": 0.99},
]


@pytest.mark.parametrize("asked", RULES, ids=lambda asked: f"{asked['rule']}-{asked.get('density', 1)}")
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_kernels_are_bit_identical(
    asked: dict[str, Any], dtype: str, folders: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    given = folders[dtype]
    count = 2 if asked["rule"] == "slerp" else 3
    models = [{"model": str(given[name])} for name in ("a", "b", "c")[:count]]
    if "density" in asked:
        models = [{**model, "density": asked["density"], "weight": 0.3 + i} for i, model in enumerate(models)]
    content = {"rule": asked["rule"], "models": models, "base": str(given["base"]), "options": asked.get("options", {})}
    recipe = parse(content, "test")
    written = []
    for choice in ("numba", "numpy"):
        report = merge_checkpoints(recipe, tmp_path / choice, kernels=choice, threads=2)
        assert report.compiled is (choice == "numba")
        written.append((tmp_path / choice / "model.safetensors").read_bytes())
    assert written[0] == written[1]


def copied(stored: np.ndarray, source: str, target: str) -> np.ndarray:
    """A combination of one model with weight one: a conversion."""
    out = np.empty(len(stored), kernels.STORAGE[target])
    types = kernels.Types(kernels.CODES[source], kernels.CODES[target])
    kernels.combine(stored[None], np.ones(1, np.float32), False, types, out)
    return out


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_conversions_of_all_halves(dtype: str) -> None:
    """Every 16-bit pattern widens to the same number, and narrows back to itself."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    wide = decode(patterns.view(np.uint8), dtype, np.dtype(np.float32))
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(copied(patterns, dtype, "F32"), wide)
    np.testing.assert_array_equal(copied(patterns, dtype, dtype)[finite], patterns[finite])
    np.testing.assert_array_equal(encode(wide.copy(), dtype).view(np.uint16)[finite], patterns[finite])


def test_rounding_is_to_nearest_even() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, np.array([65519.99, 65520.0, 2**-24, 2**-25, 1.5 * 2**-25, np.inf], np.float32)])
    values = values[~np.isnan(values)]
    for dtype, kind in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = torch.from_numpy(values).to(kind).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(encode(values.copy(), dtype).view(np.uint16), expected)
        np.testing.assert_array_equal(copied(values, "F32", dtype), expected)


def test_nan_stays_nan() -> None:
    nan = np.array([np.nan, -np.nan], np.float32)
    for dtype in ("BF16", "F16"):
        assert np.isnan(decode(encode(nan.copy(), dtype).view(np.uint8), dtype, np.dtype(np.float32))).all()


def test_the_result_holds_what_the_rule_gives(folders: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    """Streamed in slices it is the rule's function on whole tensors."""
    from merganser.merging.ties import ties

    given = folders["F32"]
    content = {
        "rule": "ties",
        "models": [{"model": str(given[name]), "density": 0.3} for name in ("a", "b", "c")],
        "base": str(given["base"]),
    }
    merge_checkpoints(parse(content, "test"), tmp_path / "out", kernels="numba")

    def load(folder: Path) -> np.ndarray:
        (tensor,) = [t for t in read_header(folder / "model.safetensors")[0] if t.name == "large.weight"]
        return np.fromfile(tensor.path, np.float32, tensor.size, offset=tensor.offset)

    expected = ties([load(given[name]) for name in ("a", "b", "c")], load(given["base"]), density=0.3)
    np.testing.assert_array_equal(load(tmp_path / "out"), expected)
