"""``merganser study``: methods compared over option grids, orders and seeds."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser import processes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from merganser.study.cells import Cell, Study
    from merganser.study.folder import StudyFolder
    from merganser.study.study import Outcome, Resources


def study(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY.yaml", help="What is compared; with --table, the folder of a study.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the study: a new one, or one to go on with.", show_default=False),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Run nothing: show cells, shared parts, hours and bytes, from measured steps."),
    ] = False,
    print_commands: Annotated[
        bool, typer.Option("--print", help="Run nothing: print one command per cell; they are independent.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Run the I-th of N slices, as one job of a cluster's array.", show_default=False
        ),
    ] = None,
    cell: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run this cell in this process.", show_default=False)
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(metavar="N", help="Cells at a time. Default: one per core, or per GPU.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Threads of a cell. Default: the cores, divided by the cells.", show_default=False
        ),
    ] = None,
    early_stop: Annotated[
        float | None,
        typer.Option(
            "--early-stop",
            metavar="POINTS",
            help="Stop cells so many percentage points behind the best other method; they are marked.",
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Run the cells on a Ray cluster: HOST:PORT or auto.", show_default=False
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --ray: copy cells to and from here, if nodes do not all see DIR.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Print the table of what is done.")] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD", help="With --table: method that the others are compared with.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before 10,000 cells and more.")] = False,
) -> None:
    """Compare methods: a run for every method, combination of options, order of the tasks and seed.

    Each cell is an ordinary run directory in DIR/cells. Interrupted at any moment, the same command goes on; cells
    added to the file later are run, those that are done are not run again.

    Example: merganser study examples/study.yaml --out studies/first
    """
    from merganser.errors import InputError
    from merganser.study.folder import StudyFolder

    if processes.launched_world_size() > 1 and cell is None:
        raise InputError("A study starts its cells itself.", "With torchrun, give it one cell: --cell NAME.")
    _check_together(
        {"--plan": plan, "--print": print_commands, "--table": table, "--cell": cell, "--only": only},
        {"--parallel": parallel, "--threads": threads, "--early-stop": early_stop, "--ray": ray, "--storage": storage},
        reference,
    )
    if table:
        from merganser.cli.study_view import show_table

        show_table(study if out is None else out, reference)
        return
    if out is None and not plan and not print_commands:
        raise InputError("There is no folder for the study.", "Name one: --out DIR.")
    folder = StudyFolder(out or (Path("DIR") if print_commands else Path(os.devnull, "study")))
    read = _read(study, yes)
    cells = None if only is None else _slice(read, only)
    if plan:
        folder.check(read)
    if read.options.tune is not None and (plan or print_commands or only is not None or cell is not None):
        read = _tuned(read, folder, plan)
        cells = None if only is None else _slice(read, only)
    if plan:
        from merganser.cli.study_plan import show_plan

        show_plan(read, folder, cells, parallel, threads)
        return
    if print_commands:
        _print(read, folder, threads, early_stop)
        return
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as clusters announce that a job will be ended
        signal.signal(number, signal.default_int_handler)
    if cell is not None:
        _one(read, folder, cell, threads, early_stop)
    else:
        from merganser.study.study import Resources

        _run(read, folder, cells, Resources(parallel, threads, ray, storage), early_stop)


ALONE = {
    "--plan": ("--only", "--parallel", "--threads"),
    "--print": ("--threads", "--early-stop"),
    "--table": (),
    "--cell": ("--threads", "--early-stop"),
}
"""What is done instead of running the study -> options that it can be given."""


def _check_together(modes: Mapping[str, object], options: Mapping[str, object], reference: str | None) -> None:
    """Refuse options that would be ignored."""
    from merganser.errors import InputError

    chosen = [name for name, value in modes.items() if value]
    given = [*chosen, *(name for name, value in options.items() if value is not None)]
    if reference is not None and "--table" not in chosen:
        raise InputError("--reference is for --table.", "In the study's file, it is the key 'reference'.")
    if chosen and chosen[0] in ALONE:
        mode, *others = given
        if wrong := [name for name in others if name not in ALONE[mode]]:
            raise InputError(f"{mode} and {wrong[0]} were both given.", "Give one of them.")


def _read(path: Path, allow_many: bool) -> Study:
    """Read a study; a person at a terminal is asked whether very many cells are wanted."""
    import sys

    from merganser.study.cells import TooManyCells, load_study

    try:
        return load_study(path, allow_many)
    except TooManyCells as error:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        if not typer.confirm(f"The study has {error.count:,} cells. Run them all?", err=True):
            raise typer.Exit(2) from None
        return load_study(path, allow_many=True)


def _tuned(study: Study, folder: StudyFolder, plan: bool) -> Study:
    """Return a study with the options that its tuning chose; to plan it before, as they are."""
    from merganser.cli.output import ProgressConsole
    from merganser.errors import InputError
    from merganser.study.tuning import most_trials, tuned, untuned

    if (chosen := tuned(study, folder, None)) is not None:
        return chosen
    if not plan:
        raise InputError(
            "The study is to be tuned first, which one process does.",
            "Run it without --print, --only and --cell until the tuning is done.",
        )
    ProgressConsole().print(f"The plan is without tuning, which is at most {most_trials(study)} cells before it.")
    return untuned(study)


def _slice(study: Study, only: str) -> Sequence[Cell]:
    import re

    from merganser.errors import InputError

    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", only)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--only is '{only}'.", "Give the number of a slice and how many there are: --only 3/8.")
    return study.only(int(match[1]), int(match[2]))


def _print(study: Study, folder: StudyFolder, threads: int | None, early_stop: float | None) -> None:
    import shlex

    from merganser.study.early_stop import EarlyStop
    from merganser.study.launched import launch_command

    options = [] if threads is None else ["--threads", str(threads)]
    if early_stop is not None:
        EarlyStop(study, folder, early_stop)
        options += ["--early-stop", f"{early_stop:g}"]
    for cell in study.runs:
        typer.echo(shlex.join(launch_command(study, folder.path, cell.name, options)))


def _one(study: Study, folder: StudyFolder, name: str, threads: int | None, early_stop: float | None) -> None:
    from merganser.cli.live import watching
    from merganser.cli.study_view import print_outcome
    from merganser.study.study import run_one

    cell = study.find(name)
    with watching(f"Merganser: {name}") as listener:
        result = run_one(study, folder, cell, listener, threads=threads, early_stop=early_stop)
    print_outcome(result, ran=True)


def _run(
    study: Study,
    folder: StudyFolder,
    cells: Sequence[Cell] | None,
    resources: Resources,
    early_stop: float | None,
) -> Outcome:
    from merganser.cli.study_view import StudyView, print_outcome
    from merganser.study.study import run_study, run_tuning

    view = StudyView()
    with view:
        study = run_tuning(study, folder, resources, view.watch)
        result = run_study(
            study,
            folder,
            resources,
            cells=cells,
            early_stop=early_stop,
            watch=view.watch,
        )
    print_outcome(result, ran=view.ran)
    return result
