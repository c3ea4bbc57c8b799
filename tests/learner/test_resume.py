"""A task that is interrupted in the middle ends in the same bytes as one that never was, by every method."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from merganser.events import Event
from tests.learner.interrupted import at, learn, notices, started, steps, stream_of
from tests.learner.toys import results

CASES: dict[str, dict[str, Any]] = {
    "aim": {},
    "aim, accumulation, cosine, replay": {
        "method": {"replay_share": 0.3},
        "training": {"accumulation": 2, "batch": 2, "schedule": "cosine", "steps": 8},
    },
    "aim, epochs with a batch left over": {
        "method": {"rehearsal_steps": 0, "start_weight": 0.1},
        "training": {"steps": None, "epochs": 2.5, "batch": 5},
    },
    "aim, all weights, noisy probes": {
        "model": {"lora": None, "dropout": 0.2},
        "method": {"probe_dropout": True, "merge_at_end": True},
        "training": {"checkpoint_steps": 3, "learning_rate": 0.002},
    },
    "aim, importance masks": {
        "method": {
            "fusion": "importance_masks",
            "interval": 3,
            "rehearsal_steps": 2,
            "ablation": {"watch_forgetting": False},
        }
    },
    "aim, best by development texts": {"training": {"select_best": True, "select_every": 2}},
    "replay": {"method": {"name": "replay"}},
    "forever": {"method": {"name": "forever", "day_steps": 2, "steps": 2}},
    "sure, memory in total": {
        "method": {"name": "sure", "decay": 0.8, "start_from": "fast"},
        "memory": {"number": None, "total": 5},
    },
    "replay, causal, texts of its own, share in model time": {
        "method": {"name": "replay", "share": 0.4, "spacing": "model_time", "day_steps": 2, "finish_weight": 0.5},
        "model": {"kind": "causal", "name": "causal"},
        "memory": {"source": "self"},
    },
    "sfa": {"method": {"name": "sfa", "p": 0.3, "merge_first": True}},
    "sequential, bf16": {"method": {"name": "sequential"}, "model": {"precision": "bf16"}},
    "replay, seq2seq": {
        "method": {"name": "replay"},
        "model": {"kind": "seq2seq", "name": "seq2seq"},
        "training": {"accumulation": 2, "batch": 2, "weight_decay": 0.1, "checkpoint_steps": 2},
    },
    "aim, causal, recomputed": {
        "model": {"kind": "causal", "name": "causal", "dropout": 0.1},
        "mix": {"file": "truth.json", "share": 0.3},
        "training": {"gradient_checkpointing": True, "group_by_length": False, "packing": "packed"},
    },
    "aim, causal, 4bit, 8-bit optimizer": {
        "model": {"kind": "causal", "name": "causal", "weights": "4bit"},
        "training": {"optimizer": "paged_adamw_8bit"},
    },
    "joint": {"method": {"name": "joint"}},
    "trm, all weights, Adam's direction": {
        "method": {"name": "trm", "steps": 3, "batch": 8, "ablation": {"augmentation": "adam"}},
        "model": {"lora": None, "dropout": 0.2},
        "training": {"learning_rate": 0.002},
    },
    "trm, seq2seq": {
        "method": {"name": "trm", "steps": 2, "batch": 6},
        "model": {"kind": "seq2seq", "name": "seq2seq"},
        "training": {"checkpoint_steps": 2},
    },
    "trm, causal, factors": {
        "method": {"name": "trm", "steps": 2, "batch": 6, "space": "factors"},
        "model": {"kind": "causal", "name": "causal", "dropout": 0.1},
    },
    **{name: {"method": {"name": name}} for name in ("ewc", "lwf", "migu", "olora", "pam", "slao", "tasl")},
    # Methods that act at the end of a task alone are sequential fine-tuning until then, from the weights that are
    # deployed, trained or pretrained. What they keep between tasks is tested in test_storing.py.
    "coma": {"method": {"name": "coma"}},
    "tunable_magmax": {"method": {"name": "tunable_magmax", "preference": "feature_similarity"}},
    "opcm": {"method": {"name": "opcm"}},
    "became": {"method": {"name": "became", "fisher_examples": 4}},
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_in_the_middle_of_tasks_it_ends_in_the_same_bytes(case: str, tmp_path: Path) -> None:
    run = stream_of(tmp_path, CASES[case])
    whole = run.with_name("whole")
    last = "mood" if "joint" in case else "topic"
    first = "mood" if case == "aim" else last

    def killed(event: Event) -> bool:
        if at(first, 4)(event):  # what a process that ends here leaves, the finished rows included
            shutil.copytree(whole, run)
        return False

    total = started(learn(whole, killed), last).steps
    every = CASES[case].get("training", {}).get("checkpoint_steps", 1)
    check_checkpoints(run, 4, every)
    for task, step in [(last, 4), (last, total)] if first != last else [(last, total)]:
        learn(run, at(task, step))
        check_checkpoints(run, step, every)
    told = learn(run)
    again = started(told, last)
    assert again.step == (total - 1) // every * every
    assert steps(told, last) == list(range(again.step + 1, total + 1))
    assert f"Resuming '{last}' at step {again.step} of {total}, from its checkpoint." in notices(told)
    assert not (run / "checkpoint").exists()
    assert results(run) == results(whole)


def check_checkpoints(run: Path, step: int, every: int) -> None:
    """The newest one of a task that ended at a step is the last that was due before, and one more is kept."""
    kept = sorted((run / "checkpoint").glob("*")) if (run / "checkpoint").exists() else []
    newest = int(kept[-1].name.rsplit("-", 1)[1]) if kept else 0
    assert newest == (step - 1) // every * every
    assert len(kept) <= 2
