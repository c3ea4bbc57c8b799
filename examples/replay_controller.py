"""What if the threshold were 1.5? The merge controller alone, fed with what a run recorded.

    python examples/make_data.py
    python examples/five_lines.py
    python examples/replay_controller.py runs/five-lines --task reviews --threshold-factor 1.5

``merganser.MergeController`` needs neither a model nor torch: losses and learning signals go in, decisions come out.
This replays a task of a run that was learned with ``method: aim``, first as it was, then with another threshold.

With the run's own numbers the replay gives exactly the run's merges. With others it is an estimate: losses on the
memory are those of the run as it was, and a merge that the run did not make gets the learning signal of the run's next
merge (after its last one, of the last).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from merganser import Merge, MergeController, read_run
from merganser.errors import InputError, MerganserError
from merganser.methods.aim import AimOptions
from merganser.runs.record import MergeRecord, SignalRecord


def replay(controller: MergeController, signals: Sequence[SignalRecord], merges: Sequence[MergeRecord]) -> list[Merge]:
    """The merges that ``controller`` decides on when it is shown a task's recorded signals.

    Args:
        signals: one per inner step.
        merges: those of the run, in order of their steps; at least one.
    """
    decisions = []
    for signal in signals:
        decision = controller.observe(signal.step, signal.probe)
        if decision is not None:
            covering = next((merge for merge in merges if merge.step >= signal.step), merges[-1])
            controller.record(covering.learning_signal)
            decisions.append(decision)
    return decisions


def show(title: str, decisions: Sequence[Merge]) -> None:
    print(f"{title}: {len(decisions)} merges, {sum(each.rehearsal_steps for each in decisions)} rehearsal steps")
    for each in decisions:
        print(
            f"  step {each.step:4d}  {each.cause:6s}  {each.alarms} alarms  planned {each.interval:3d}  "
            f"{each.weight_new:g} new + {each.weight_old:g} old"
        )


def main(arguments: Sequence[str] | None = None) -> list[list[Merge]]:
    parser = argparse.ArgumentParser(description="Replay the merge decisions of a run with another threshold.")
    parser.add_argument("run", type=Path, help="run directory, learned with method aim")
    parser.add_argument("--task", help="task to replay; default: the last one that was merged")
    parser.add_argument("--threshold-factor", type=float, default=1.5, help="the other threshold")
    given = parser.parse_args(arguments)

    run = read_run(given.run)
    if run.info.config["method"]["name"] != "aim":
        raise InputError(f"'{given.run}' was not learned with method aim.", "Only such a run has merges to replay.")
    options = AimOptions.model_validate(run.info.config["method"])
    # The last merge of `merge_at_end` is the method's doing, not the controller's.
    merged = [merge for merge in run.merges if merge.cause != "end"]
    names = list(dict.fromkeys(merge.task for merge in merged))
    task = given.task or (names[-1] if names else "")
    if task not in names:
        raise InputError(f"'{given.run}' made no merges in task '{task}'.", f"Tasks with merges: {names or 'none'}.")
    merges, signals = [merge for merge in merged if merge.task == task], run.signals[task]

    other = options.model_copy(update={"threshold_factor": given.threshold_factor})
    as_it_was = replay(options.controller(), signals, merges)
    what_if = replay(other.controller(), signals, merges)
    same = [each.step for each in as_it_was] == [merge.step for merge in merges]
    print(f"Task '{task}', {len(signals)} steps; the replay {'equals' if same else 'DIFFERS FROM'} the ledger.")
    show(f"threshold factor {options.threshold_factor:g}, as it was", as_it_was)
    show(f"threshold factor {given.threshold_factor:g}, what if", what_if)
    return [as_it_was, what_if]


if __name__ == "__main__":
    try:
        main()
    except MerganserError as error:
        raise SystemExit(f"error: {error}") from None
