"""Replay a recorded run with another alarm threshold: the merge controller alone, without a model.

    python examples/make_data.py
    python examples/five_lines.py
    python examples/replay_controller.py runs/five-lines --task reviews --threshold-factor 1.5

``merganser.MergeController`` needs neither a model nor torch: losses and learning signals go in, decisions come out.
This replays a task of a run that was learned with ``method: aim``, first with its own settings, then with another
threshold.

With the run's own numbers the replay gives exactly the run's merges; with others it is an estimate, and
``merganser.report.replay`` describes its error. As a command:
``merganser replay RUN --set threshold_factor=1.5``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from merganser import Merge, read_run
from merganser.errors import MerganserError
from merganser.report.replay import replay


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
    task = given.task or (run.merges[-1].task if run.merges else None)
    as_it_was, what_if = replay(run, task=task), replay(run, {"threshold_factor": given.threshold_factor}, task)
    (was,), (other,) = as_it_was.tasks, what_if.tasks
    print(f"Task '{was.task}', {was.steps} steps; the replay {'equals' if was.same else 'DIFFERS FROM'} the ledger.")
    show(f"threshold factor {as_it_was.config.threshold_factor:g}, as it was", was.replayed)
    show(f"threshold factor {given.threshold_factor:g}, what if", other.replayed)
    return [list(was.replayed), list(other.replayed)]


if __name__ == "__main__":
    try:
        main()
    except MerganserError as error:
        raise SystemExit(f"error: {error}") from None
