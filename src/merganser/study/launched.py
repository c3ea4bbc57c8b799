"""Cells of several processes, which a launcher starts: torchrun, or accelerate with a file that shards the weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from merganser.errors import InputError, RunError
from merganser.study.cells import Cell, Study
from merganser.study.folder import StudyFolder

ERROR = "error: "
"""How the line begins with which the command ends that fails."""


def launch_command(study: Study, folder: Path, cell: str, options: Sequence[str] = ()) -> list[str]:
    """Return the command that runs one cell in as many processes as the study sets, as separate words."""
    command = ["study", study.where, "--out", str(folder), "--cell", cell, *options]
    count = study.options.processes
    if count == 1 and study.options.fsdp is None:
        return ["merganser", *command]
    if study.options.fsdp is not None:
        file = str(study.folder / study.options.fsdp)
        launcher = ["accelerate", "launch", "--config_file", file, "--num_processes", str(count)]
    else:
        launcher = ["torchrun", "--standalone", "--nproc-per-node", str(count)]
    return [*launcher, "-m", "merganser", *command]


def needs_launcher(study: Study) -> bool:
    """Return whether a cell has several processes."""
    return study.options.processes > 1 or study.options.fsdp is not None


def check_launcher(study: Study) -> None:
    """Refuse a study whose cells cannot be launched.

    Raises:
        InputError: it is not in a file, or the file of accelerate is not there.
    """
    if not needs_launcher(study):
        return
    if not Path(study.where).is_file():
        raise InputError("Cells of several processes read the study from its file.", "Write it to a YAML file.")
    if study.options.fsdp is not None and not (study.folder / study.options.fsdp).is_file():
        raise InputError(f"{study.where}: fsdp: there is no file '{study.options.fsdp}'.", "See examples/accelerate/.")


def run_launched(study: Study, cell: Cell, folder: StudyFolder, threads: int) -> None:
    """Run a cell in several processes, each with so many threads, and wait for their end.

    Raises:
        RunError: they failed, with what they said.
        KeyboardInterrupt: after they have ended.
    """
    launcher, *rest = launch_command(study, folder.path, cell.name, ["--threads", str(threads)])
    # By this interpreter: the launchers need not be on the path.
    module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}[launcher]
    log = folder.log(cell.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    log.write_bytes(b"")  # an error of an earlier attempt is not that of this one
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *rest],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if code:
        raise RunError(last_error(log) or f"its processes ended with exit code {code}")


def last_error(log: Path) -> str | None:
    """Return the error that a command has printed last; ``None``: it printed none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.removeprefix(ERROR) for line in reversed(lines) if line.startswith(ERROR)), None)
