"""``merganser learn``: add one task to a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser import processes
from merganser.cli.check import Confidence, MaxDrop, MaxDropOf, MinNew, bounds_of
from merganser.cli.options import JsonOption, ModelOption, RunArgument, VerboseOption
from merganser.settings import CONFIDENCE, MAX_DROP

if TYPE_CHECKING:
    from merganser.cli.gate import Gate


def learn(
    run: RunArgument,
    task: Annotated[str, typer.Option(metavar="NAME", help="Name of the new task.", show_default=False)],
    train: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Training examples, texts or images: json, jsonl, csv, tsv, parquet, hub:ID, or a folder of images.",
            show_default=False,
        ),
    ],
    test: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Test examples; without them the task is not scored.", show_default=False),
    ] = None,
    dev: Annotated[str | None, typer.Option(metavar="FILE", help="Development examples.", show_default=False)] = None,
    input_field: Annotated[str, typer.Option("--input", metavar="FIELD", help="Field that holds the text.")] = "input",
    image_field: Annotated[
        str | None,
        typer.Option("--image", metavar="FIELD", help="Field that holds an image's path.", show_default=False),
    ] = None,
    output_field: Annotated[
        str, typer.Option("--output", metavar="FIELD", help="Field that holds the answer.")
    ] = "output",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Form of the rows: fields, messages, sharegpt, alpaca, prompt_completion, question_answer, superni; "
            "auto: found by looking at the file.",
        ),
    ] = "auto",
    prompt: Annotated[
        str | None,
        typer.Option(help="Prompt template, such as 'Topic of: {input}'.", show_default=False),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels separated by commas; 'auto', 'train' or 'none'.", show_default=False)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Score of an answer: accuracy, exact_match, rouge_l, f1, or a function of your own, module:function.",
            show_default=False,
        ),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="'generate' text, or 'rank' the labels.", show_default=False)
    ] = None,
    on_bad_rows: Annotated[
        str | None,
        typer.Option(
            help="Rows that cannot be used: 'refuse' them all at once (default), or 'skip' them.", show_default=False
        ),
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Other data to train on as well (see --mix-share).", show_default=False),
    ] = None,
    mix_share: Annotated[
        float | None,
        typer.Option(help="Fraction of the training rows that come from --mix, such as 0.05.", show_default=False),
    ] = None,
    model: ModelOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Start a new run with this configuration.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Write nothing: show steps, memory, and an estimate of the time from ten steps."),
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Keep the task only if the check says 'keep', as `merganser check` would; else the run stays as it "
            "was. Bounds: the four options below.",
        ),
    ] = False,
    max_drop: MaxDrop = 100 * MAX_DROP,
    max_drop_of: MaxDropOf = None,
    min_new: MinNew = None,
    confidence: Confidence = 100 * CONFIDENCE,
) -> None:
    """Learn one more task in an existing run, with the method that the run was started with.

    The run directory changes only when the task is complete. Interrupted, the same command resumes from the last
    checkpoint.

    With --check the answers after the task are compared with those before it. Exit code 0: kept. 3: it lost too much
    (or the new task is below --min-new) and was not kept. 4: the test sets are too small to tell, and it was not kept.
    What changed is then in RUN-refused.

    Example: merganser learn runs/first --task tickets --train tickets.csv --input text --output queue

    Example: merganser learn runs/first --task new --train new.csv --test new-test.csv --check --max-drop-of safety=0
    """
    from merganser.cli.live import Output, learn_one
    from merganser.config import explain_options, load_config
    from merganser.errors import InputError
    from merganser.streams.loading import load_task
    from merganser.streams.task_options import TaskOptions
    from merganser.streams.watch import WatchedTask, load_watched

    given = {"image": image_field, "prompt": prompt, "metric": metric, "answer": answer, "test": test, "dev": dev}
    given["on_bad_rows"] = on_bad_rows
    options: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if (mix is None) != (mix_share is None):
        raise InputError("--mix and --mix-share go together.", "Give the file and its share of the training rows.")
    if mix is not None:
        options["mix"] = {"file": mix, "share": mix_share}
    if labels is not None:
        options["labels"] = (
            labels if labels in ("auto", "train", "none") else [part.strip() for part in labels.split(",")]
        )
    options.update(name=task, train=train, input=input_field, output=output_field, format=form)
    checked = explain_options(TaskOptions, options, "the task")
    learned = processes.run_collectively(lambda: load_task(checked, Path.cwd()))
    started = None if config is None else load_config(config)
    watch: tuple[WatchedTask, ...] = ()
    if config is not None and started is not None and (stream := started.stream) is not None:
        beside = config.resolve().parent
        watch = processes.run_collectively(lambda: load_watched(stream, beside))
    if plan:
        from merganser.cli.plan import plan_tasks

        plan_tasks(started, [learned], run, as_json=as_json, added=True, watch=watch)
        return
    gate = _gate(run, check, (max_drop, max_drop_of, min_new, confidence))
    command = shlex.join(["merganser", "learn", str(run), "--task", task])
    output: Output = "json" if as_json else "verbose" if verbose else "screen"
    learn_one(run, learned, started, model, command=command, output=output, watch=watch, gate=gate)


def _gate(run: Path, check: bool, given: tuple[float, list[str] | None, float | None, float]) -> Gate | None:
    """Return what decides whether the task is kept; ``None``: it is kept in any case.

    Raises:
        InputError: bounds without --check, or bounds that cannot be read.
    """
    from merganser.cli.gate import Gate
    from merganser.errors import InputError
    from merganser.metrics.retention import Bounds

    bounds = bounds_of(*given)
    if check:
        return Gate(run, bounds)
    if bounds != Bounds():
        raise InputError("Bounds were given, and nothing is checked.", "Give --check too.")
    return None
