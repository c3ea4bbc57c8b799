"""Compare with mergekit itself: the recorded answers, and whole checkpoints merged by both commands.

    pytest benchmarks/mergekit_conformance.py                                          # compare
    python benchmarks/mergekit_conformance.py > tests/merging/mergekit_golden.json     # record its answers again

Run it from the repository's folder in an environment that has mergekit 0.1.5 beside this package. The test suite
compares with the recorded answers instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from checkpoint import Sizes, config, shapes
from tests.checkpoints.conftest import write_folder
from tests.checkpoints.test_merge import load
from tests.merging.mergekit_cases import CASES, Case, inputs

from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.mergekit_file import translate
from merganser.checkpoints.recipe_file import parse

GOLDEN = Path(__file__).parents[1] / "tests" / "merging" / "mergekit_golden.json"


def mergekit_result(case: Case) -> np.ndarray:
    """mergekit's answer, in float32."""
    import torch
    from mergekit.merge_methods import merge_tensors

    models, base = inputs(case.models)
    arrays = [base, *models] if case.base else models
    tensors = [torch.from_numpy(array).to(getattr(torch, case.dtype)) for array in arrays]
    parameters = {}
    for key, value in case.theirs.items():
        # A base has no weight of its own; mergekit ignores what stands in its place.
        parameters[key] = [0.0, *value] if isinstance(value, list) and case.base else value
    if case.base:
        names = ["base", *(f"model{i}" for i in range(case.models))]
        parameters = {
            key: dict(zip(names[1:], value[1:], strict=True)) if isinstance(value, list) else value
            for key, value in parameters.items()
        }
    else:
        names = [f"model{i}" for i in range(case.models)]
        parameters = {
            key: dict(zip(names, value, strict=True)) if isinstance(value, list) else value
            for key, value in parameters.items()
        }
    index = 0 if case.base or case.method == "slerp" else None
    torch.manual_seed(0)
    result = merge_tensors(tensors, case.method, parameters=parameters, ids=names, base_index=index)
    return result.float().numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mergekit_still_answers_what_was_recorded(case: Case) -> None:
    recorded = np.array(json.loads(GOLDEN.read_text())["answers"][case.name])
    np.testing.assert_allclose(mergekit_result(case).ravel(), recorded, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "breadcrumbs_ties", "sce", "model_stock", "karcher"])
def test_files_are_merged_like_mergekit_does(method: str, tmp_path: Path) -> None:
    sizes = Sizes(3, hidden=64, inner=96, vocabulary=100)
    generator = np.random.default_rng(0)
    base = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes(sizes).items()}
    for model in ("m", "a", "b"):
        noise = 0.0 if model == "m" else 0.1
        tensors = {
            k: v + np.float32(noise) * generator.normal(size=v.shape).astype(np.float32) for k, v in base.items()
        }
        write_folder(tmp_path / model, tensors, shards=2)
        (tmp_path / model / "config.json").write_text(json.dumps(config(sizes)))
        (tmp_path / model / "tokenizer.json").unlink()
    # Every tensor has a number of elements that 0.25 divides, so that both keep the same count.
    parameters: dict[str, Any] = {
        "weight": [0.2, 0.9],
        "density": 0.25,
        "t": [0, 0.7, 1],
        "gamma": 0.125,
        "select_topk": 1.0,
    }
    names = [str(tmp_path / model) for model in ("m", "a", "b")]
    models = names[:2] if method == "slerp" else names
    content: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": name} for name in models],
        "parameters": parameters,
        "dtype": "float32",
    }
    if method not in ("linear", "karcher"):
        content["base_model"] = names[0]
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(content))
    script = "from mergekit.scripts.run_yaml import main; main()"
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "theirs"), "--no-copy-tokenizer", "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    translated, _ = translate(content, "config.yml")
    merge_checkpoints(parse(translated, "config.yml"), tmp_path / "ours")
    theirs, ours = load(tmp_path / "theirs"), load(tmp_path / "ours")
    assert set(theirs) == set(ours)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5, atol=2e-5, err_msg=name)


def record() -> dict[str, Any]:
    """Compute the answers of the mergekit that is installed, with its version."""
    from importlib.metadata import version

    return {
        "mergekit": version("mergekit"),
        "torch": version("torch"),
        "answers": {case.name: [float(v) for v in mergekit_result(case).ravel()] for case in CASES},
    }


if __name__ == "__main__":
    json.dump(record(), sys.stdout, indent=0)
