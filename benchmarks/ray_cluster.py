"""Run studies on a Ray cluster of this machine, and kill a worker and a node: the results are those of one machine.

    pip install ray
    python -m pytest benchmarks/ray_cluster.py

Run it from the repository's folder. The test suite, where ray is not installed, checks in ``tests/study/test_ray.py``
what is called on a node and what is said when one is lost.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.learner import toys
from tests.study.conftest import _surroundings, write_study  # noqa: F401

from merganser.study.local import Progress
from merganser.study.study import study


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
