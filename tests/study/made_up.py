"""Made-up cells with known true scores: no model, no run."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merganser.metrics.continual import summary
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score
from merganser.streams.builtin import BUILTIN
from merganser.study.cell_record import CellCost, CellRecord, ExampleScores
from tests.learner import toys

SETS = ("cifar100", "imagenet-r", "cub200", "cars")
"""Folders of the published sets of images."""

STREAM, TASKS = "topics", ("newsgroups", "reuters", "tweets", "books")

FORGETTING = 0.05
"""What the first task loses until the end."""


def _random(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]))


def cell(
    method: str,
    order: str = "1",
    seed: int = 0,
    *,
    level: float = 0.7,
    noise: float = 0.01,
    n: int = 100,
    tasks: Sequence[str] = TASKS,
    **changes: Any,
) -> CellRecord:
    """A cell whose final scores are about ``level``; test examples are as hard in every cell.

    ``changes`` are fields of the record, among them the ``options`` of the method.
    """
    options = changes.pop("options", None)
    turn = int(order) - 1 if order.isdigit() else 0
    tasks = (*tasks[turn:], *tasks[:turn])
    lucky = _random(method, options, order, seed)
    run_effect = float(lucky.normal(0, noise))
    matrix = ScoreMatrix(tasks)
    examples = {}
    for number in range(len(tasks) + 1):
        scores = {}
        for place, task in enumerate(tasks):
            lost = FORGETTING * (len(tasks) - 1 - place) / max(1, len(tasks) - 1)
            value = 0.2 if number <= place else level + run_effect + lost * (len(tasks) - number) / len(tasks)
            hardness = _random(task).uniform(size=n)
            right = (hardness + lucky.normal(0, 0.05, n) < value).astype(float)
            mean = float(right.mean())
            scores[task] = Score(value=mean, n=n, stderr=float(right.std() / np.sqrt(n)))
            if number == len(tasks):
                examples[task] = ExampleScores(test_sha256=f"{len(task):064x}", scores=right.tolist())
        matrix.add_row([] if number == 0 else [tasks[number - 1]], scores)
    name = "-".join([method, *(f"{k}={v}" for k, v in (options or {}).items()), STREAM, order, str(seed)])
    values: dict[str, Any] = {
        "name": name,
        "method": method,
        "options": dict(options or {}),
        "stream": STREAM,
        "order": order,
        "seed": seed,
        "run": f"runs/{name}",
        "created": "2026-01-02T03:00:00Z",
        "finished": "2026-01-02T03:04:05Z",
        "configuration": {
            "model": {"name": "example/encoder", "kind": "matcher"},
            "method": {"name": method, **(options or {})},
            "training": {"epochs": 1, "learning_rate": 0.001},
        },
        "versions": {"merganser": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        "hardware": {"processor": "Example 3000", "cores": "2", "system": "Linux x86_64", "device": "cpu"},
        "tasks": list(tasks),
        "metrics": dict.fromkeys(tasks, "accuracy"),
        "rows": list(matrix.rows),
        "summary": summary(matrix),
        "examples": examples,
        "cost": cost(),
    }
    return CellRecord(**{**values, **changes})


def cost(trained: int = 1200, rehearsed: int = 0, seconds: float = 40.0, stored: int = 0) -> CellCost:
    return CellCost(
        examples_trained=trained,
        examples_rehearsed=rehearsed,
        seconds=seconds * 1.3,
        training_seconds=seconds,
        processor_seconds=seconds * 2,
        bytes_stored={"memory": stored} if stored else {},
    )


def study(
    levels: Mapping[str, float], orders: Sequence[str] = ("1", "2", "3"), seeds: int = 5, **changes: Any
) -> list[CellRecord]:
    """A cell per method, order and seed."""
    return [
        cell(method, order, seed, level=level, **changes)
        for method, level in levels.items()
        for order in orders
        for seed in range(seeds)
    ]


def write_texts(folder: Path) -> Path:
    """A few texts for every task of the built-in orders, under the names of the published files."""
    for name, families in (("data_longsequence", ("standard-cl", "long-sequence")), ("data_superni", ("superni",))):
        tasks = {task for stream in BUILTIN.values() if stream.name[:-2] in families for task in stream.tasks}
        for split in ("train", "dev", "test"):
            (folder / name / split).mkdir(parents=True)
            for task in tasks:
                toys.write_rows(folder / name / split / f"{task}_T5.json", toys.rows("mood", 4, seed=len(split)))
    return folder


def write_pictures(folder: Path, classes: int) -> Path:
    """One picture of each class of every published set of images, in the folders that are read without the hub."""
    from PIL import Image

    for name, split, label in itertools.product(SETS, ("train", "test"), range(classes)):
        of_class = folder / name / split / f"kind {label}"
        of_class.mkdir(parents=True)
        Image.new("RGB", (8, 8), (label * 60 % 256, 90, len(split) * 20)).save(of_class / "1.png")
    return folder
