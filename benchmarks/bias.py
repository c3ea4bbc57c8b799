"""How much of what is lost where classes grow is bias towards some tasks, and whether the memory can correct it.

    python benchmarks/bias.py runs/newsgroups/tried --methods aim replay

For every finished cell of a study of encoders whose candidates are all labels seen: constants, one per task, are added
to the scores of its labels. OP as it is; with the constants that are best on the very texts that are scored (an upper
bound; coordinate ascent over a grid); with those that make the memory's texts likeliest, with a ridge; and among each
task's own labels. Percent; intervals are 95 % (Student's t over cells).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import optimize, special, stats

from merganser.learner import Learner
from merganser.learner.session import Session
from merganser.models.base import eval_mode
from merganser.models.precision import autocast
from merganser.streams.task import Example

GRID = np.linspace(-8, 8, 65)
"""Changes of one constant (logits) that are tried around 0."""

ROUNDS = 3
"""Times that every constant is tried."""

RIDGE = 1.0
"""Weight of half the squared length of the constants beside the sum of the losses on the memory (nats)."""

COLUMNS = ("as it is", "best constants", "from the memory", "own labels")


@dataclass(frozen=True)
class Scored:
    """Texts and what the model says to them.

    Attributes:
        logits: texts x labels.
        right: of every text, the position of its label.
        task: of every text, the position of its task.
    """

    logits: np.ndarray
    right: np.ndarray
    task: np.ndarray


def scored(session: Session, given: Iterable[tuple[str, Example]], label_task: np.ndarray) -> Scored:
    """Compare texts with all labels."""
    tasks = session.known_tasks()
    names = list(tasks)
    examples = list(given)
    backbone = session.backbone
    everything = session.candidates.spec(next(iter(tasks.values())).spec, [task.spec for task in tasks.values()])
    features = backbone.features([example for _, example in examples], everything)
    logits = []
    with eval_mode(backbone.module), torch.no_grad(), autocast(backbone.device, backbone.precision):
        for start in range(0, len(features), 64):
            batch = backbone.collate(features[start : start + 64])
            logits.append(backbone.module(**batch)["logits"].double().numpy())
    right = np.array([feature["label"] for feature in features])
    task = np.array([names.index(name) for name, _ in examples])
    assert (label_task[right] == task).all()
    return Scored(np.concatenate(logits), right, task)


def performance(texts: Scored, constants: np.ndarray, label_task: np.ndarray) -> float:
    """Return the mean accuracy of the tasks with constants added to the scores of their labels."""
    hits = (texts.logits + constants[label_task]).argmax(1) == texts.right
    return float(np.mean([hits[texts.task == task].mean() for task in np.unique(texts.task)]))


def best_constants(texts: Scored, label_task: np.ndarray) -> np.ndarray:
    """Find constants by coordinate ascent; of equally good ones the smallest change."""
    constants = np.zeros(label_task.max() + 1)
    changes = GRID[np.argsort(abs(GRID))]
    for _ in range(ROUNDS):
        for task in range(len(constants)):
            tried = [constants + change * (np.arange(len(constants)) == task) for change in changes]
            constants = max(tried, key=lambda values: performance(texts, values, label_task))
    return constants


def likeliest_constants(texts: Scored, label_task: np.ndarray) -> np.ndarray:
    """Find the constants that make the labels of some texts likeliest, with a ridge."""

    def loss(constants: np.ndarray) -> float:
        log = special.log_softmax(texts.logits + constants[label_task], axis=1)
        return float(-log[np.arange(len(texts.right)), texts.right].sum() + RIDGE / 2 * (constants**2).sum())

    return optimize.minimize(loss, np.zeros(label_task.max() + 1)).x


def measure(folder: Path) -> list[float]:
    """Return the four columns of one run."""
    with Learner.open(folder) as learner:
        session = learner.session
        tasks = session.known_tasks()
        session.use(session.rows[-1])
        label_task = np.array([i for i, task in enumerate(tasks.values()) for _ in task.spec.labels or ()])
        tests = scored(session, [(name, e) for name, task in tasks.items() for e in task.test], label_task)
        memory = scored(session, session.memory(), label_task)
    none = np.zeros(len(tasks))
    own = Scored(np.where(label_task == tests.task[:, None], tests.logits, -np.inf), tests.right, tests.task)
    return [
        performance(tests, none, label_task),
        performance(tests, best_constants(tests, label_task), label_task),
        performance(tests, likeliest_constants(memory, label_task), label_task),
        performance(own, none, label_task),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study whose cells keep their runs")
    parser.add_argument("--methods", nargs="+", required=True, help="of the study")
    arguments = parser.parse_args()
    print(f"| method | cells | {' | '.join(COLUMNS)} |")
    print(f"|---|--:|{'--:|' * len(COLUMNS)}")
    for method in arguments.methods:
        folders = sorted((arguments.study / "cells").glob(f"{method},*"))
        if not folders:
            parser.error(f"{arguments.study}: no cell of a method '{method}'")
        values = 100 * np.array([measure(folder) for folder in folders])
        half = stats.t.ppf(0.975, max(1, len(values) - 1)) * stats.sem(values) if len(values) > 1 else np.nan
        cells = [
            f"{mean:.1f} ± {width:.1f}" for mean, width in zip(values.mean(0), np.broadcast_to(half, 4), strict=True)
        ]
        print(f"| {method} | {len(folders)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
