"""The command ``merganser``: one file per subcommand, nothing heavy imported before it is needed."""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from merganser import processes
from merganser.cli import failures
from merganser.cli.ask import ask
from merganser.cli.check import check
from merganser.cli.demo import demo
from merganser.cli.diff import diff
from merganser.cli.evaluate import evaluate
from merganser.cli.export import export
from merganser.cli.history import history
from merganser.cli.learn import learn
from merganser.cli.listing import methods, schema
from merganser.cli.merge import merge
from merganser.cli.push import push
from merganser.cli.replay import replay
from merganser.cli.report import report
from merganser.cli.reproduce import reproduce
from merganser.cli.run import run
from merganser.cli.streams import streams
from merganser.cli.study import study
from merganser.cli.tag import tag
from merganser.cli.undo import undo
from merganser.cli.verify import verify
from merganser.errors import InputError, MerganserError, sentence
from merganser.models.library_output import silence_bitsandbytes

HELP = (
    "Fine-tune one language model on task after task without forgetting: continual learning by adaptive model merging."
    "\n\nTry it: [bold]merganser demo[/bold]. Your own tasks: [bold]merganser run STREAM.yaml --out RUN[/bold]. "
    "One more task: [bold]merganser learn RUN --task NAME --train FILE[/bold]. "
    "Inference: [bold]merganser ask RUN TEXT[/bold]."
)

app = typer.Typer(
    name="merganser",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    epilog="Add --debug to any command to print the traceback of an error.",
    pretty_exceptions_enable=False,
)


class _Stopped(Exception):
    """Ctrl-C, under a name that Typer does not turn into an exit code."""


class _ReaderGone(Exception):
    """The reader of standard output has closed it, as in ``merganser ask ... | head``."""


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that exceptions which Typer handles itself reach :func:`main`."""

    @functools.wraps(command)
    def guarded(*args: object, **kwargs: object) -> None:
        try:
            if processes.launched_world_size() > 1 and command not in SEVERAL:
                raise InputError(
                    f"The command `merganser {command.__name__}` runs in one process.",
                    "Start it without torchrun or accelerate.",
                )
            processes.initialize()
            command(*args, **kwargs)
            processes.exit_after_barrier()
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            raise _Stopped from error
        except BrokenPipeError as error:
            raise _ReaderGone from error

    return guarded


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"merganser {metadata.version('merganser')}")
        raise typer.Exit


@app.callback(help=HELP)
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options of the program itself."""


PATIENCE = 2.0
"""Seconds that a process waits with an error that all processes have, so that rank 0 reports it first."""

BUG = "This is a bug in Merganser. Run again with --debug and please report it."

SEVERAL = (run, learn, evaluate, study)
"""Commands that run on several processes."""

WORK = (
    demo,
    run,
    learn,
    check,
    history,
    diff,
    tag,
    undo,
    verify,
    ask,
    evaluate,
    report,
    replay,
    export,
    push,
    merge,
    study,
    reproduce,
)
"""Commands in the order of the help; those that only list things come last."""

for command in (*WORK, methods, streams, schema):
    app.command()(_guarded(command))


def main() -> None:
    """Run the command line. Exit code 0: done; 1: work failed; 2: invalid input; 130: Ctrl-C."""
    # Two torch threads on busy cores can be twenty times slower while OpenMP spins; it reads these when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # What a command imports stays: to look through it for garbage every 700 objects takes a sixth of its start.
    gc.set_threshold(10_000, 20, 50)
    silence_bitsandbytes()
    failures.prepare_streams()
    failures.require_working_folder()
    aside = processes.launched_rank() > 0
    if aside:  # rank 0 is the only process that prints
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    if debug:
        arguments.remove("--debug")
    try:
        app(args=arguments, prog_name="merganser")
    except MerganserError as error:
        if aside and (error.reported_elsewhere or isinstance(error, InputError)):
            # The launcher ends all processes when one fails: rank 0 must have printed the error by then.
            time.sleep(PATIENCE)
        elif aside:
            sys.stderr = sys.__stderr__
        if debug:
            traceback.print_exc()
        failures.report(error)
        raise SystemExit(error.exit_code) from None
    except (_Stopped, KeyboardInterrupt):
        if debug:
            traceback.print_exc()
        print("Stopped. Completed work is kept; the same command resumes it.", file=sys.stderr)
        raise SystemExit(130) from None
    except (_ReaderGone, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        if aside:
            sys.stderr = sys.__stderr__
        if debug:
            traceback.print_exc()
        if processes.is_peer_lost(error):
            message = "Another process of this run has ended. The same command resumes from the last checkpoint."
            failures.report(message)
        elif explained := failures.explain(error):
            failures.report(explained)
            raise SystemExit(explained.exit_code) from None
        else:
            failures.report(f"{sentence(f'{type(error).__name__}: {error}')} {BUG}")
        raise SystemExit(1) from None
