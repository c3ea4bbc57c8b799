"""Synthetic runs: complete records with numbers that follow a rule, without any model."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from merganser.metrics import Metric, Score, ScoreRow
from merganser.runs.record import (
    CostRecord,
    MergeRecord,
    RunInfo,
    RunRecord,
    ScoresFile,
    SignalRecord,
    TaskRecord,
)
from merganser.streams.answers import AnswerSpec
from merganser.streams.memory import MemorySummary

CAUSES = ("due", "early", "forced")


def one_score(value: float, n: int = 200) -> Score:
    return Score(value=value, n=n, stderr=math.sqrt(value * (1 - value) / n))


def score_of(row: int, column: int, forgetting: float) -> float:
    """Scores after ``row`` tasks: .1 to .2 before the task is learned, a peak when it is, then forgetting."""
    if row <= column:
        return 0.1 + 0.02 * (column % 5)
    return max(0.05, 0.9 - 0.03 * (column % 4) - forgetting * (row - column - 1))


def task_signals(index: int, steps: int, merging: bool) -> list[SignalRecord]:
    out = []
    for step in range(1, steps + 1):
        wave = 0.12 * math.sin(12.9898 * step * step + index) + 0.05 * math.sin(step)
        probed = merging and index > 1
        out.append(
            SignalRecord(
                step=step,
                loss=2.1 * math.exp(-step / (0.3 * steps)) + 0.25 + wave,
                learning_rate=3e-4 * (1 - (step - 1) / steps),
                probe=0.5 + 0.5 * math.sin(step / 9) ** 2 + abs(wave) if probed else None,
                interval=8 * (1 + step // (steps // 4 + 1)) if merging else None,
                threshold=1.1 if probed and step % 30 > 12 else None,
            )
        )
    return out


def task_merges(name: str, index: int, steps: int, every: int) -> list[MergeRecord]:
    fired = list(range(every, steps + 1, every))
    return [
        MergeRecord(
            task=name,
            task_index=index,
            merge=number,
            step=step,
            cause="end" if step == steps else CAUSES[number % 3],
            status="refused" if number == 3 else "applied",
            alarms=number % 3 + 1,
            interval=8,
            next_interval=(8, 12, 5)[number % 3],
            threshold=1.1,
            learning_signal=4.2 / number + 0.3 * (number % 3),
            forgetting_signal=1.25,
            rehearsal_steps=8,
            weight_new=0.6,
            weight_old=0.4,
            norm_new=1.5 / number,
            norm_old=0.75,
            cosine=None if number == 1 else -0.25,
            loss_new_before=0.5,
            loss_new_after=0.625,
            loss_old_before=1.25,
            loss_old_after=0.875,
        )
        for number, step in enumerate(fired, start=1)
    ]


@dataclass(frozen=True)
class Made:
    """What a run is made of; ``together`` learns its tasks jointly, with one row for all."""

    names: list[str]
    method: str = "aim"
    steps: int = 120
    merging: bool = True
    merge_every: int = 15
    together: bool = False
    forgetting: float = 0.03
    references: bool = False
    path: str = "runs/example"
    command: str = "merganser run stream.yaml --out runs/example"


def make_run(names: list[str], **made: Any) -> RunRecord:
    """A finished run over ``names``; the rest are fields of :class:`Made`."""
    run = Made(names, **made)
    return RunRecord(
        path=run.path,
        info=RunInfo(
            created="2026-01-02T03:00:00Z",
            command=run.command,
            seed=42,
            config={
                "model": {"name": "example/encoder", "kind": "matcher", "lora": {"r": 8, "alpha": 32}},
                "method": {"name": run.method, "threshold_factor": 2.0},
                "stream": {"name": "five topics"},
                "memory": {"share": 0.02, "sampler": "per_label"},
            },
            versions={"merganser": "0.1.0", "python": "3.11.2", "torch": "2.9.0"},
        ),
        tasks=[task_record(run, index, name) for index, name in enumerate(names, start=1)],
        scores=all_scores(run),
        merges=[
            merge
            for index, name in enumerate(names, start=1)
            if run.merging and index > 1
            for merge in task_merges(name, index, run.steps, run.merge_every)
        ],
        signals={names[0]: task_signals(1, run.steps, False)}
        if run.together
        else {name: task_signals(index, run.steps, run.merging) for index, name in enumerate(names, start=1)},
    )


def task_record(run: Made, index: int, name: str) -> TaskRecord:
    return TaskRecord(
        name=name,
        index=index,
        row=1 if run.together else index,
        seed=42 + index,
        fingerprint=f"{index:064x}",
        train_examples=300,
        dev_examples=50,
        test_examples=200,
        spec=AnswerSpec(("sport", "trade", "space"), mode="rank", metric="accuracy"),
        source={"train": f"data/{index}/train.json"},
        memory=MemorySummary(
            examples=6, bytes=1234 * index, budget=6, share=0.02, sampler="per_label",
            per_label={"sport": 2, "trade": 2, "space": 2},
        )
        if run.merging
        else MemorySummary(),
        cost=CostRecord(
            seconds=20.0, inner_seconds=10.0, probing_seconds=1.0 if run.merging else 0.0,
            rehearsal_seconds=2.0 if run.merging else 0.0, merging_seconds=0.25 if run.merging else 0.0,
            merge_eval_seconds=0.75 if run.merging else 0.0, bookkeeping_seconds=0.1, evaluating_seconds=4.0,
            steps=run.steps, examples_trained=run.steps * 16, examples_rehearsed=640 if run.merging else 0,
            examples_probed=1920 if run.merging else 0, examples_evaluated=200 * len(run.names),
        ),
        method_bytes={"memory": 1234 * index, "weights": 2_400_000},
        finished="2026-01-02T03:04:05Z",
    )  # fmt: skip


def all_scores(run: Made) -> ScoresFile:
    names, count = run.names, len(run.names)
    rows = [
        ScoreRow(
            learned=([] if row == 0 else list(names) if run.together else [names[row - 1]]),
            scores={name: one_score(score_of(row, column, run.forgetting)) for column, name in enumerate(names)},
        )
        for row in ([0, count] if run.together else range(count + 1))
    ]
    final = [rows[-1].scores[name].value for name in names]
    own = [rows[1 if run.together else column + 1].scores[name].value for column, name in enumerate(names)]
    op = sum(final) / count
    bwt = sum(f - o for f, o in zip(final[:-1], own[:-1], strict=True)) / (count - 1) if count > 1 else None
    return ScoresFile(
        tasks=names,
        metrics=dict.fromkeys(names, "accuracy"),
        rows=rows,
        references={name: one_score(0.92) for name in names} if run.references else {},
        summary=[
            Metric(
                name="OP", value=op, stderr=0.011,
                definition="Overall performance: mean score over all tasks after the last one.", source="GEM",
            ),
            Metric(
                name="BWT", value=bwt, stderr=0.004 if bwt is not None else None,
                definition="Backward transfer: mean change of a task's score since it was learned.", source="GEM",
            ),
            Metric(
                name="FWT", value=None, definition="Not measured without single-task references.", source="AIM",
            ),
        ],
    )  # fmt: skip


TOPICS = ["newsgroups", "reuters", "tweets", "books", "grimm"]


@pytest.fixture
def run() -> RunRecord:
    return make_run(TOPICS)


@pytest.fixture
def sequential() -> RunRecord:
    return make_run(TOPICS, method="sequential", merging=False, forgetting=0.15, path="runs/sequential")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``chromium(url, *arguments)``: standard output of headless Chromium on a page; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: the page cannot be opened in a real browser")

    def browse(url: str, *arguments: str) -> str:
        profile = tmp_path_factory.mktemp("profile")
        quiet = ["no-first-run", "disable-background-networking", "disable-component-update", "disable-sync"]
        result = subprocess.run(
            [
                *(program, "--headless", "--no-sandbox", "--disable-gpu", *(f"--{flag}" for flag in quiet)),
                *(f"--user-data-dir={profile}", "--virtual-time-budget=4000", *arguments, url),
            ],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        return result.stdout

    return browse


def file_url(path: Path) -> str:
    return path.resolve().as_uri()
