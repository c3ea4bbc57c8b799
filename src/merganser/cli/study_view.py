"""What is shown while a study runs, and at its end."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from types import TracebackType

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from merganser.cli.output import OutputConsole, ProgressConsole
from merganser.cli.time_left import left
from merganser.report.formatting import plural, seconds, shortened
from merganser.study.cells import Study
from merganser.study.folder import StudyFolder
from merganser.study.local import BUSY, Machine, Progress
from merganser.study.study import Outcome, Work

FEWEST = 8
"""Running cells that are shown, at most."""


class StudyView:
    """Shows the cells that run: redrawn in a terminal, one line per finished cell elsewhere; as a context."""

    def __init__(self) -> None:
        self.console = ProgressConsole()
        self.ran = False
        self._progress: Progress | None = None
        self._title = ""
        self._done = self._total = 0
        self._live: Live | None = None

    def __enter__(self) -> StudyView:
        if self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def watch(self, study: Study, work: Work, machine: Machine, progress: Progress) -> None:
        """Begin to show a study."""
        self.ran = True
        self._progress = progress
        self._total, self._done = len(work.cells), 0
        done = sum(work.statuses[cell.name].stage not in ("waiting", "begun") for cell in study.runs)
        where = plural(machine.cells, "cell") + f" at a time, {plural(machine.threads, 'thread')} each"
        self._title = f"Merganser: study '{study.name}', {plural(self._total, 'cell')} to run, {where}"
        self._print(self._title + (f"; {done} are done or left alone" if done > 0 else ""))
        progress.ended = self._ended
        progress.notice = self._print

    def _ended(self, name: str, took: float, error: str | None) -> None:
        self._done += 1
        estimate = left(self._progress.seconds_left if self._progress else None)
        failed = error if error == BUSY else f"FAILED: {error}"
        stopped = error is None and self._progress is not None and self._progress.stopped(name)
        ended = f"stopped by a rule after {seconds(took)}" if stopped else f"done in {seconds(took)}"
        result = ended if error is None else failed
        rest = f"; {estimate}" if estimate and self._done < self._total else ""
        self._print(f"[{self._done}/{self._total}] {name}: {result}{rest}")

    def _print(self, text: str) -> None:
        console = self._live.console if self._live is not None else self.console
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __rich__(self) -> RenderableType:
        if self._progress is None:
            return Text("Reading the study ...", style="dim")
        estimate = left(self._progress.seconds_left)
        head = f"{self._done} of {self._total} cells have ended" + (f", {estimate}" if estimate else "")
        lines: list[RenderableType] = [Text(head, style="bold")]
        running = self._progress.schedule.running
        for name in running[:FEWEST]:
            task, fraction = self._progress.fractions.get(name, ("", 0.0))
            lines.append(Text(f"  {shortened(name, 60)}  {fraction:4.0%}  {shortened(task, 30)}"))
        if len(running) > FEWEST:
            lines.append(Text(f"  and {len(running) - FEWEST} more", style="dim"))
        return Group(*lines)


def print_outcome(outcome: Outcome, ran: bool) -> None:
    """Print what came of a study; failed and changed cells make the exit code 1."""
    console = ProgressConsole()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    for name, reason in outcome.changed.items():
        kept = " and ".join(map(str, StudyFolder(outcome.folder).kept(name)))
        say(
            f"Left alone: '{name}' is not what the study has now: {reason}. "
            f"To run it anew, move {kept} elsewhere, or give the method another name."
        )
    for name, reason in outcome.stopped.items():
        say(f"Stopped: '{name}': {reason}")
    for name, reason in outcome.failed.items():
        say(f"Failed: '{name}': {reason} (see {outcome.folder / 'logs' / name}.log)")
    done = plural(len(outcome.done), "cell")
    nothing = "" if ran else " Nothing was left to run."
    say(f"{done} of the study {'is' if len(outcome.done) == 1 else 'are'} done.{nothing}")
    if outcome.done:
        say(f"Tables and page: merganser study {shlex.quote(str(outcome.folder))} --table")
    if count := len(outcome.waiting):
        say(f"{plural(count, 'cell')} {'is' if count == 1 else 'are'} run by another process.")
    if outcome.failed:
        say("The same command tries the failed ones again; all others are kept.")
    if outcome.failed or outcome.changed:
        raise typer.Exit(1)


def show_table(path: Path, reference: str | None = None) -> None:
    """Print the tables of whatever is done in the folder of a study, or in one of records, and write its page.

    Raises:
        InputError: there is nothing, or the page cannot be written.
    """
    from merganser.study.published import read_results

    results = read_results(path, reference)
    written = results.publish()  # first: the reader of what is printed may leave early, as in `... --table | head`
    console = OutputConsole()
    for part in results.table.terminal():
        console.print(part)
    folder = StudyFolder(path)
    state = folder.state() if path.is_dir() else {}
    if state:
        cells = folder.study().cells
        stages = {cell.name: folder.status(cell).stage for cell in cells}
        count = Counter(stages.values())
        stopped = f", {count['stopped']} stopped by a rule" if count["stopped"] else ""
        console.print(f"{count['done']} of {plural(len(cells), 'cell')} of the study are done{stopped}.")
        changed = [name for name, stage in stages.items() if stage == "changed"]
        names = {cell.name for cell in cells}
        removed = [record.name for record in results.records if record.name not in names and record.tuning is None]
        for text, stale in (
            ("Left out, since the study has them otherwise now", changed),
            ("Among the results, and not in the study now", removed),
        ):
            if stale:
                shown = ", ".join(stale[:5]) + (" ..." if len(stale) > 5 else "")
                console.print(f"{text}: {shown}.", soft_wrap=True)
    console.print(f"Wrote {written}", soft_wrap=True)
