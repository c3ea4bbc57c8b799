"""Cells on a Ray cluster of this machine, of whose processes some are killed. Needs the package ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from merganser.errors import InputError
from merganser.study import on_ray
from merganser.study.local import Progress
from merganser.study.study import study
from tests.learner import toys
from tests.study.conftest import write_study

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
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


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without processors, and a node with two."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    started.add_node(num_cpus=2)
    yield started
    import ray

    ray.shutdown()
    started.shutdown()


class Killer:
    """Kills the worker of the first cell in its second task, and later the node."""

    def __init__(self, folder: Path, cluster: Any) -> None:
        self.folder = folder
        self.cluster = cluster
        self.killed: list[str] = []

    def __call__(self, study: object, work: object, machine: object, progress: Progress) -> None:
        progress.tick = self.tick

    def tick(self, progress: Progress) -> None:
        begun = list(self.folder.glob("cells/*/checkpoint/02-step-*"))
        if begun and not self.killed:
            os.kill(int((begun[0].parents[1] / ".lock").read_text()), signal.SIGKILL)
            self.killed.append("worker")
        elif self.killed == ["worker"] and list(self.folder.glob("records/*.json")):
            node = next(iter(self.cluster.worker_nodes))
            self.cluster.add_node(num_cpus=2)
            self.cluster.remove_node(node, allow_graceful=False)
            self.killed.append("node")


@pytest.mark.skipif(not HAS_RAY, reason="needs ray")
@pytest.mark.slow
def test_cells_survive_the_loss_of_a_worker_and_of_a_node(cluster: Any, tmp_path: Path) -> None:
    training = {**toys.settings()["training"], "steps": 150, "checkpoint_steps": 10}
    file = write_study(tmp_path, methods=["replay"], seeds=4, training=training)
    killer = Killer(tmp_path / "out", cluster)
    result = study(file, tmp_path / "out", ray=cluster.address, watch=killer)
    assert killer.killed == ["worker", "node"]
    assert result.failed == {}
    assert result.complete
    file = write_study(tmp_path / "here", methods=["replay"], seeds=4, training=training)
    assert study(file, tmp_path / "here" / "out", parallel=1, threads=1).complete
    for name in result.done:
        assert toys.results(tmp_path / "out/cells" / name) == toys.results(tmp_path / "here/out/cells" / name)


@pytest.mark.skipif(not HAS_RAY, reason="needs ray")
@pytest.mark.slow
def test_nodes_that_share_no_folder_copy_their_cells(cluster: Any, tmp_path: Path) -> None:
    file = write_study(tmp_path, methods=["sequential", "wild"])
    values = yaml.safe_load(file.read_text())
    values["methods"] = {"sequential": None, "wild": {"method": "sequential", "training": {"learning_rate": 1e30}}}
    file.write_text(yaml.safe_dump(values))
    result = study(file, tmp_path / "out", ray=cluster.address, storage=f"file://{tmp_path}/bucket")
    assert list(result.failed) == ["wild,s0"]
    assert result.failed["wild,s0"].startswith("on ")
    assert result.done == ["sequential,s0"]
    assert (tmp_path / "bucket/cells/sequential,s0/run.yaml").is_file()
