"""``merganser demo``: learn five real tasks with a real pretrained model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from merganser.cli.options import VerboseOption


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the three runs and the page.")] = Path(
        "demo-run"
    ),
    seed: Annotated[int, typer.Option(help="Seed of every random choice, the sample of texts included.", min=0)] = 0,
    method: Annotated[str, typer.Option(help="Method to run; see `merganser methods`.")] = "aim",
    quick: Annotated[
        bool, typer.Option("--quick", help="Use a third of the texts: about a minute, larger standard errors.")
    ] = False,
    baseline: Annotated[bool, typer.Option(help="Also learn the stream by the two baselines, to compare.")] = True,
    verbose: VerboseOption = False,
    learn_only: Annotated[bool, typer.Option("--learn-only", hidden=True)] = False,
) -> None:
    """Learn five real text classification tasks, one after another, with a pretrained sentence encoder.

    Sequential fine-tuning and experience replay learn the same stream at the
    same time, to compare. Needs two packages that `make demo` installs
    (scripts/fetch_demo_assets.sh).
    """
    from merganser.cli.live import learn_stream
    from merganser.cli.output import OutputConsole, ProgressConsole
    from merganser.cli.screen import show_outcome
    from merganser.demo import BASELINES, BaselineRuns, demo_config, demo_tasks
    from merganser.methods import METHODS
    from merganser.report import write_report
    from merganser.runs import read_run

    config = demo_config(method, seed, quick)
    tasks = demo_tasks(seed, quick)
    others = [name for name in BASELINES if baseline and name != method and not learn_only]
    command = shlex.join(["merganser", "demo", "--out", str(out), "--seed", str(seed), "--method", method])
    command += " --quick" if quick else ""
    if others:
        with BaselineRuns(out, others, seed, quick) as beside:
            rival = (METHODS[others[0]].title, out / others[0])
            record = learn_stream(out / method, config, tasks, command=command, output="none", beside=rival)
            ProgressConsole().print(f"Waiting for {' and '.join(others)} to finish ...", style="dim")
            beside.wait()
    else:
        record = learn_stream(out / method, config, tasks, command=command, output="none")
    if learn_only:  # beside a demonstration, whose page shows this run
        return
    compared = [read_run(out / name) for name in others]
    page = write_report(record, out / "report.html", compared)
    console = OutputConsole()
    show_outcome(console, record, baselines=compared, page=page, verbose=verbose)
    console.print(
        f"Ask: merganser ask {shlex.quote(str(out / method))} 'Oil prices rose sharply after the announcement'",
        highlight=False,
        soft_wrap=True,
    )
