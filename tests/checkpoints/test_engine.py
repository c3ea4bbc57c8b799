"""Numbers that are not finite, in and out; few open files; the messages of rules with the names of files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.engine import NUMBA_PAYS_FROM, load_kernels
from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.streaming import Files
from merganser.errors import InputError
from tests.checkpoints.conftest import example, write_folder
from tests.checkpoints.test_merge import load

KERNELS = ["numpy", "numba"]


def merged(out: Path, kernels: str, names: list[Any], rule: str = "linear", **more: Any) -> Any:
    if kernels == "numba":
        pytest.importorskip("numba")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return merge_checkpoints(parse({"rule": rule, "models": names, **more}, "test"), out, kernels=kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_nan_in_what_is_copied_is_refused_by_name(
    kernels: str, dtype: str | None, family: dict[str, Path], tmp_path: Path
) -> None:
    broken = example(0)
    broken["only.weight"] = np.array([1, np.nan], np.float32)
    base = write_folder(tmp_path / "broken", broken)
    names, more = [str(family["a"])], {"base": str(base), "common_only": True, "dtype": dtype}
    with pytest.raises(InputError, match=r"only\.weight of .*broken holds NaN"):
        merged(tmp_path / "out", kernels, names, **more)
    report = merged(tmp_path / "out", kernels, names, **more, allow_nonfinite=True)
    assert report.nonfinite == ["only.weight"]
    names, overrides = [str(base), str(base)], [{"match": "only*", "from": "base"}]
    with pytest.raises(InputError, match=r"only\.weight of .*broken holds NaN"):
        merged(tmp_path / "kept", kernels, names, base=str(base), overrides=overrides)


LARGE = [
    ("linear", "F32", "float16", 1e5),
    ("linear", "F32", "float16", 65520.0),
    ("linear", "F32", "bfloat16", 3.4e38),
    ("ties", "F32", "float16", 1e5),
    ("magmax", "F32", "float16", 2e5),
    ("sce", "F32", "float16", 1e5),
    ("task_arithmetic", "BF16", None, 3e38),
    ("breadcrumbs", "F16", None, 6e4),
]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("rule", "stored", "dtype", "value"), LARGE)
def test_finite_models_whose_result_overflows_are_reported(
    kernels: str, rule: str, stored: str, dtype: str | None, value: float, tmp_path: Path
) -> None:
    tensors = {"fine": np.full(9, 2, np.float32), "large": np.full(9, value, np.float32)}
    names = [str(write_folder(tmp_path / name, tensors, dtype=stored)) for name in "ab"]
    base = write_folder(tmp_path / "base", {k: np.zeros_like(v) for k, v in tensors.items()}, dtype=stored)
    report = merged(tmp_path / "out", kernels, names, rule, base=str(base), dtype=dtype)
    assert report.nonfinite == ["large"]
    assert np.isinf(load(tmp_path / "out")["large"]).all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("dtype", "value"), [("float16", 65519.0), ("bfloat16", 3.3895e38), ("float32", 3.4e38)])
def test_the_largest_numbers_are_no_overflow(kernels: str, dtype: str, value: float, tmp_path: Path) -> None:
    name = str(write_folder(tmp_path / "a", {"w": np.full(9, value, np.float32)}))
    assert merged(tmp_path / "out", kernels, [name], dtype=dtype).nonfinite == []
    assert np.isfinite(load(tmp_path / "out")["w"]).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_weights_beyond_single_precision(kernels: str, tmp_path: Path) -> None:
    names = [str(write_folder(tmp_path / name, {"w": np.ones(9, np.float32)})) for name in "ab"]
    models = [{"model": name, "weight": 1e39} for name in names]
    assert merged(tmp_path / "mean", kernels, models).nonfinite == []
    np.testing.assert_array_equal(load(tmp_path / "mean")["w"], 1.0)
    assert merged(tmp_path / "sum", kernels, models, options={"normalize": False}).nonfinite == ["w"]
    with pytest.raises(InputError, match="no finite sum"):
        merged(tmp_path / "more", kernels, [{"model": name, "weight": 1e308} for name in names])


@pytest.mark.parametrize("rule", ["karcher", "fisher"])
def test_rules_that_always_normalise_do_not_advise_to_switch_it_off(
    rule: str, family: dict[str, Path], tmp_path: Path
) -> None:
    models = [{"model": str(family["a"]), "weight": 1}, {"model": str(family["b"]), "weight": -1}]
    if rule == "fisher":
        models = [{**model, "fisher": model["model"]} for model in models]
    with pytest.raises(InputError, match="sum to zero") as caught:
        merged(tmp_path / "out", "numpy", models, rule)
    assert "normalize: false" not in str(caught.value)


def test_a_negative_fisher_is_named(family: dict[str, Path], tmp_path: Path) -> None:
    good = {name: np.abs(value) for name, value in example(0).items()}
    bad = {**good, "model.norm.weight": -np.ones(8, np.float32)}
    fishers = [write_folder(tmp_path / "good", good), write_folder(tmp_path / "bad", bad)]
    models = [{"model": str(family[key]), "fisher": str(fisher)} for key, fisher in zip("ab", fishers, strict=True)]
    with pytest.raises(InputError, match=r"model\.norm\.weight of .*/bad has a negative entry"):
        merged(tmp_path / "out", "numpy", models, "fisher")


@pytest.mark.parametrize(
    ("rule", "shares"),
    [
        ("breadcrumbs", {"density": 0.5, "gamma": 0.02}),
        ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.1}),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.1}),
        ("breadcrumbs", {"density": 0.0, "gamma": 1.0}),
        ("breadcrumbs", {"density": 1.0, "gamma": 0.0}),
        ("ties", {"density": 0.02}),
        ("magmax", {}),
    ],
)
def test_kernels_and_numpy_agree_where_weights_are_not_finite(
    rule: str, shares: dict[str, float], tmp_path: Path
) -> None:
    pytest.importorskip("numba")
    generator = np.random.default_rng(0)
    names = []
    for name in ("base", "a", "b"):
        tensors = {
            "w": generator.normal(size=100).astype(np.float32),
            "v": generator.normal(size=50).astype(np.float32),
        }
        if name != "base":
            tensors["w"][[3, 50, 70]] = np.nan, np.inf, np.nan
        names.append(str(write_folder(tmp_path / name, tensors)))
    models = [{"model": name, **shares} for name in names[1:]]
    written = []
    for kernels in KERNELS:
        merged(tmp_path / kernels, kernels, models, rule, base=names[0], allow_nonfinite=True)
        written.append((tmp_path / kernels / "model.safetensors").read_bytes())
    assert written[0] == written[1]


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.weight": np.ones(3, np.float32) for i in range(60)}
    names = [str(write_folder(tmp_path / name, tensors, shards=60)) for name in "ab"]
    script = (
        "import sys\nfrom merganser.checkpoints.merge import merge_checkpoints\n"
        "from merganser.checkpoints.recipe_file import parse\n"
        "merge_checkpoints(parse({'rule': 'linear', 'models': sys.argv[1:3]}, 'test'), sys.argv[3], threads=3)\n"
    )

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    subprocess.run([sys.executable, "-c", script, *names, str(tmp_path / "out")], preexec_fn=limited, check=True)
    np.testing.assert_array_equal(load(tmp_path / "out")["layers.59.weight"], 1.0)


def test_a_file_in_use_stays_open(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    files = Files(limit=1)
    with files.use(tmp_path / "a") as first:
        for name in "bc":
            with files.use(tmp_path / name) as other:
                assert os.pread(other, 1, 0) == name.encode()
        assert os.pread(first, 1, 0) == b"a"
        with files.use(tmp_path / "a") as again:
            assert again == first
    files.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(first, 1, 0)


def test_numba_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "merganser.checkpoints.kernel_calls", None)
    monkeypatch.delattr("merganser.checkpoints.kernel_calls", raising=False)
    assert load_kernels("auto", NUMBA_PAYS_FROM) is None
    with pytest.raises(InputError, match="Numba cannot be used"):
        load_kernels("numba", NUMBA_PAYS_FROM)


def test_small_merges_do_not_import_numba() -> None:
    assert load_kernels("auto", NUMBA_PAYS_FROM - 1) is None
