"""Cells on a Ray cluster, without one: options, answers of a node, what is said of a loss.

``benchmarks/ray_cluster.py`` starts a cluster and kills its processes.
"""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from merganser.errors import InputError
from merganser.study import on_ray
from merganser.study.study import study
from tests.study.conftest import write_study


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_the_package_the_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'pip install "merganser\[ray\]"'):
        study(write_study(tmp_path), tmp_path / "out", ray="local")


def test_options_of_a_cluster_are_refused_without_one(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    for options, message in [
        ({"storage": "file:///x"}, "--storage is for a Ray cluster"),
        ({"ray": "auto", "parallel": 2}, "--parallel is for this machine"),
        ({"ray": "auto", "storage": "x", "early_stop": 5.0}, "--early-stop compares cells"),
    ]:
        with pytest.raises(InputError, match=message):
            study(file, tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--storage copies the cells of one process"):
        study(write_study(tmp_path, processes=2), tmp_path / "out", ray="auto", storage="x")


def test_a_node_runs_a_cell_or_says_why_not(copied: Path, tmp_path: Path) -> None:
    """Without Ray: what it calls on a node, and what it gives back."""
    file = copied / "study.yaml"
    values = yaml.safe_load(file.read_text())
    setting = {
        **{"study": values, "where": str(file), "folder": str(copied), "out": str(copied / "out")},
        **{"threads": 1, "early_stop": None, "storage": None},
    }
    assert on_ray.run_remotely(setting, "joint,order-1,s0")[0] is None
    reason, seconds = on_ray.run_remotely({**setting, "folder": str(tmp_path)}, "joint,order-1,s0")
    assert "mood.json" in str(reason)
    assert f"on {socket.gethostname()}: " in str(reason)
    assert seconds > 0.0


def test_why_a_worker_gave_no_answer() -> None:
    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        cause = ModuleNotFoundError("No module named 'merganser'")

    def fail(error: Exception) -> Any:
        raise error

    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError), get=fail)
    began, lost = (on_ray._result(ray, error)[0] for error in (RayTaskError(), RayError("The node died.")))
    assert began == "it could not be begun: ModuleNotFoundError: No module named 'merganser'"
    assert lost == "its worker was lost 4 times: The node died."


def test_a_request_that_no_node_can_hold_is_said() -> None:
    def node(cpus: float, gpus: float = 0.0, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {}), "memory": 1e9}}

    nodes = [node(2), node(4), node(64, 8, alive=False)]
    assert on_ray.unmet({"CPU": 4, "GPU": 0}, nodes) == ""
    assert on_ray.unmet({"CPU": 1, "GPU": 0.5}, [*nodes, node(1, 1)]) == ""
    said = on_ray.unmet({"CPU": 8, "GPU": 0}, nodes)
    assert "No node of the cluster has the 8 processors that a cell requests (the largest has 4 processors)" in said
    both = on_ray.unmet({"CPU": 4, "GPU": 2}, [*nodes, node(16, 1)])
    assert "has the 4 processors and 2 GPUs that a cell requests (the largest has 16 processors and 1 GPUs)" in both
    assert "(the largest has 0 processors)" in on_ray.unmet({"CPU": 1, "GPU": 0}, [])
