"""``merganser replay``: with the run's own options it is the ledger; with others it says what it does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merganser.config import load_config
from merganser.control import MergeController
from merganser.learner import Learner
from merganser.report.replay import NEEDS_TRAINING, REPLAYABLE, ChangeRates, replay, replay_task
from merganser.runs import read_run
from merganser.runs.record import MergeRecord, SignalRecord
from merganser.streams.loading import load_stream
from tests.learner.toys import (
    Command,
    contents,
    copy_of_trained,
    read_json,
    settings,
    without_checksums,
    write_config,
    write_stream,
)

CASES: dict[str, dict[str, Any]] = {
    "sparse": {"interval": 4, "cold_start": 0, "probe_every": 2, "threshold_factor": 1.01},
    "per interval": {"interval": 4, "cold_start": 0, "probes_per_interval": 2, "merge_at_end": True},
    "defaults": {"interval": 2},
    "fixed": {"interval": 3, "ablation": {"watch_forgetting": False}},
    "masks": {
        "interval": 3,
        "fusion": "importance_masks",
        "rehearsal_steps": 2,
        "ablation": {"adapt_interval": False},
    },
    "once": {"ablation": {"only_at_end": True}},
    "released": {"compat": "reference", "interval": 2, "cold_start": 1},
}


def learned(folder: Path, method: dict[str, Any]) -> Path:
    values = settings()
    values["method"] = {"name": "aim", **method}
    values["training"]["steps"] = 14
    write_stream(folder)
    config = load_config(write_config(folder / "stream.yaml", values))
    assert config.stream is not None
    with Learner.of_config(folder / "run", config) as learner:
        learner.learn_stream(load_stream(config.stream, folder).tasks)
    return folder / "run"


@pytest.mark.parametrize("case", CASES)
def test_with_the_options_of_the_run_it_is_the_ledger(case: str, tmp_path: Path) -> None:
    run = read_run(learned(tmp_path, CASES[case]))
    (task,) = replay(run).tasks
    assert len(task.actual) >= (1 if case == "once" else 2)
    assert task.same
    assert [merge.step for merge in task.replayed] == [merge.step for merge in run.merges]
    assert (task.estimated, task.replaced_probes) == (0, 0)


def test_command(merganser: Command, tmp_path: Path) -> None:
    run = copy_of_trained(tmp_path)
    before = contents(run)
    done = merganser("replay", run)
    assert done.code == 0, done.err
    assert "Replayed with the options of the run." in done.out
    assert "exactly the merges of the ledger" in done.out
    assert "An estimate" not in done.out
    done = merganser("replay", run, "--set", "threshold_factor=1000", "--set", "interval=3")
    assert "interval 3 instead of 2, threshold_factor 1000 instead of 2" in done.out.replace("\n", " ")
    assert "An estimate" in done.out
    assert "learning signals are of intervals that the run did not have" in done.out.replace("\n", " ")
    done = merganser("replay", run, "--json", "--task", "topic", "--set", "ablation.weight_new=0.5")
    found = json.loads(done.out)
    assert found["changes"] == {"ablation.weight_new": {"run": None, "replay": 0.5}}
    (task,) = found["tasks"]
    assert [each["step"] for each in task["replayed"]] == [each["step"] for each in task["actual"]]
    assert {each["weight_new"] for each in task["replayed"]} == {0.5}
    assert task["same"] is False
    assert contents(run) == before


def emptied(row: Path, name: str) -> None:
    """A row of a run that never had lines in this file."""
    (row / f"{name}.jsonl").write_text("")
    content = read_json(row / "row.json")
    content["lines"][name] = 0
    content["checksum"] = ""
    content["sha256"] = {}
    (row / "row.json").write_text(json.dumps(content))


def test_runs_that_cannot_be_replayed(merganser: Command, tmp_path: Path) -> None:
    assert "There is no run" in merganser("replay", tmp_path / "absent").error
    run = copy_of_trained(tmp_path / "a")
    emptied(run / "tasks/02-topic", "merges")
    assert "made no merge, so that the rate at which its weights change is unknown" in merganser("replay", run).error
    run = copy_of_trained(tmp_path / "b")
    emptied(run / "tasks/02-topic", "signals")
    assert "There are no signals of task 'topic'" in merganser("replay", run).error
    run = without_checksums(copy_of_trained(tmp_path / "c"))
    file = run / "run.yaml"
    lines = file.read_text().replace("name: aim", "name: sequential")
    file.write_text(lines)
    assert "was learned with method sequential, which has no merge controller" in merganser("replay", run).error
    run = learned(tmp_path / "d", CASES["fixed"])
    done = merganser("replay", run, "--set", "ablation.watch_forgetting=true")
    assert "took no probes in task 'topic' (ablation.watch_forgetting: false)" in done.error
    run = learned(tmp_path / "e", CASES["sparse"])
    assert (
        "probed every 2 steps, and these options probe more often"
        in merganser("replay", run, "--set", "probe_every=1").error
    )
    done = merganser("replay", run, "--set", "probe_every=3")
    assert done.code == 0
    assert "were not taken by the run; each is replaced by the one before it" in done.out.replace("\n", " ")


def test_every_option_can_be_changed_or_says_why_not() -> None:
    assert set(NEEDS_TRAINING) & set(REPLAYABLE) == set()
    assert all(NEEDS_TRAINING.values())


def made(step: int, interval: int, signal: float, merge: int = 1, **more: Any) -> MergeRecord:
    values: dict[str, Any] = {"cause": "due", "next_interval": interval, "rehearsal_steps": interval}
    values |= {"weight_new": 0.6, "weight_old": 0.4, "norm_new": 1.0, "norm_old": 1.0, "alarms": 0}
    return MergeRecord(
        task="t", task_index=2, merge=merge, step=step, interval=interval, learning_signal=signal, **{**values, **more}
    )


def test_learning_signals_of_other_intervals() -> None:
    # 4 steps at pace 2 * 4 / 4 = 2, then 6 steps at pace 3 * 4 / 6 = 2 of a planned interval of 4.
    rates = ChangeRates([made(4, 4, 2.0), made(10, 4, 3.0, 2)])
    assert rates.signal(0, 4, 4) == (2.0, True)
    assert rates.signal(4, 10, 4) == (3.0, True)
    assert rates.signal(0, 4, 8) == (1.0, False)
    assert rates.signal(2, 8, 6) == ((2 * 2 + 4 * 2) / 6, False)
    assert rates.signal(9, 13, 4) == ((1 + 3) * 2 / 4, False)
    assert rates.signal(20, 24, 4) == (4 * 2 / 4, False)


def test_refused_merges_count_as_the_others() -> None:
    signals = [SignalRecord(step=step, loss=1.0, learning_rate=0.1, probe=1.0) for step in range(1, 9)]
    merges = [made(4, 4, 2.0, status="refused", reason="x"), made(8, 4, 3.0, 2)]
    found = replay_task(MergeController(interval=4, watch_forgetting=False), signals, merges)
    assert found.same


def test_a_value_that_repeats_itself_without_bound(run: Path, merganser: Command) -> None:
    done = merganser("replay", run, "--set", "window=[&a [x], *a, {b: 1, b: 2}]")
    assert (done.code, "is not a value" in done.error) == (2, True)
