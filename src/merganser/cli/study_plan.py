"""``merganser study --plan``: what a study would take, and nothing written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from merganser.cli.output import OutputConsole, ProgressConsole
from merganser.errors import MerganserError
from merganser.report.formatting import plural, seconds, size
from merganser.streams.formats import is_unreachable
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.study.cells import Cell, Study
from merganser.study.folder import StudyFolder
from merganser.study.local import find_machine
from merganser.study.plan import StudyPlan, absent_data, plan_study
from merganser.study.study import accelerators, find_work


def show_plan(
    study: Study, folder: StudyFolder, cells: Sequence[Cell] | None, parallel: int | None, threads: int | None
) -> None:
    """Print the cells of a study, what they share, hours and bytes."""
    machine = find_machine(len(study.runs), parallel, threads, accelerators(), study.options.processes)
    chosen = study.runs if cells is None else cells
    try:
        work = find_work(study, folder, chosen, resume_stopped=True, models=False)
    except MerganserError as error:
        if not is_unreachable(error):
            raise
        _print_without_data(study, chosen, absent_data(study))
        return
    progress = ProgressConsole()
    plan = plan_study(
        study,
        work.cells,
        work.data,
        machine.cells,
        done=sum(status.stage == "done" for status in work.statuses.values()),
        announce=lambda title: progress.print(f"Measuring {title} ...", style="dim", highlight=False),
    )
    _print(plan, machine.cells, machine.threads)


def _print_without_data(study: Study, chosen: Sequence[Cell], absent: Mapping[str, str]) -> None:
    """Print what is known of a study whose images or texts are on the hub alone, which cannot be asked."""
    console = OutputConsole()
    console.print(f"{plural(len(study.cells), 'cell')}; {plural(len(chosen), 'run')} to make.")
    console.print("All keys and methods of the study are valid.")
    for stream, problem in absent.items():
        options = study.options.named_streams[stream]
        images = IMAGE_SETS.get(options.name or "")
        tasks = f", {images.tasks} tasks of {images.classes} classes" if images is not None else ""
        named = f"{stream} ({options.name}{tasks})" if options.name else stream
        console.print(f"Data missing: {named}. {problem}", soft_wrap=True, highlight=False)
    if others := [stream for stream in study.options.named_streams if stream not in absent]:
        console.print(f"Data found: {', '.join(others)}.", soft_wrap=True, highlight=False)
    console.print("Nothing could be measured: time, memory and disk are not estimated.\nNothing was written.")


def _print(plan: StudyPlan, at_a_time: int, threads: int) -> None:
    console = OutputConsole()
    done = f", {plan.done} of them done" if plan.done else ""
    console.print(f"{plural(plan.cells, 'cell')}{done}; {plural(plan.runs, 'run')} to make.")
    if not plan.methods:
        console.print("Nothing was written.")
        return
    table = Table(pad_edge=False)
    table.add_column("method", overflow="fold")
    for column in ("runs", "each", "all", "memory", "disk, each"):
        table.add_column(column, justify="right")
    for method in plan.methods:
        count = len(method.cells)
        if method.plan is None:
            table.add_row(method.title, str(count), "?", "?", "?", "?")
            continue
        times = (seconds(method.seconds), seconds(count * method.seconds))
        table.add_row(method.title, str(count), *times, size(method.plan.memory.total), size(method.disk))
    console.print(table)
    if plan.shared:
        trainings = plural(len(plan.shared), "first task")
        console.print(
            f"Shared: {trainings} trained once for {sum(plan.shared)} cells, which saves "
            f"{seconds(plan.saved_seconds)}; the answers of the pretrained model once for all."
        )
    for problem in dict.fromkeys(method.problem for method in plan.methods if method.problem):
        console.print(f"Not measured: {problem}", soft_wrap=True)
    remarks = [remark for method in plan.methods if method.plan for remark in method.plan.remarks]
    for remark in dict.fromkeys(remarks):
        console.print(remark, soft_wrap=True)
    measured = [method for method in plan.methods if method.plan is not None]
    if not measured:
        console.print("No method could be measured: time, memory and disk are not estimated.\nNothing was written.")
        return
    hours = plan.machine_seconds / 3600
    begin = "About" if len(measured) == len(plan.methods) else "Of the methods that could be measured: about"
    console.print(
        f"{begin} {hours:.2f} hours of one cell after another, {seconds(plan.seconds)} with "
        f"{plural(at_a_time, 'cell')} at a time of {plural(threads, 'thread')} each, which need about "
        f"{size(plan.memory)} of memory and {size(plan.disk)} on disk.",
        soft_wrap=True,
    )
    console.print("Nothing was written.")
