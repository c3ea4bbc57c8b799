"""The report of a run: one self-contained HTML page that opens from a file and loads nothing from the network."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from merganser.errors import InputError
from merganser.files.documents import yaml_document
from merganser.metrics.course import TaskCourse
from merganser.report import overview, sections
from merganser.report.curve_images import curve_images
from merganser.report.files import ANOTHER_FOLDER, write_whole
from merganser.report.flips import flips
from merganser.report.formatting import CAUSE_LETTER, cause_title, day
from merganser.report.merge_weights import weight_numbers
from merganser.report.names import run_title
from merganser.report.score_table import matrix
from merganser.report.series import chart_data, merge_stride, points_per_task
from merganser.report.verdict import noise_of
from merganser.runs.answers import answers_of
from merganser.runs.checksums import sealed_text
from merganser.runs.record import RunRecord

MOST_SHOWN = 200
"""Values of one list or mapping of the configuration that the page shows."""


def embedded_json(value: Any) -> Markup:
    """Encode ``value`` as JSON that is safe inside a ``<script>`` element: without ``<``, ``>``, ``&`` and line
    separators, no task name can end the element or begin a comment.

    Raises:
        ValueError: ``value`` holds a NaN or an infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def check_comparable(run: RunRecord, baseline: RunRecord) -> None:
    """Refuse a baseline that learned other tasks or data: its metrics would not be comparable.

    Raises:
        InputError: other tasks, another order, or other data or settings of a task.
    """
    remedy = "Give a run that learned the same stream to the same task."
    tasks = {task.name: task for task in run.tasks}
    baseline_tasks = {task.name: task for task in baseline.tasks}
    if list(tasks) != list(baseline_tasks):
        raise InputError(
            f"The baseline '{baseline.path}' learned other tasks than '{run.path}': "
            f"{', '.join(baseline_tasks) or 'none'} instead of {', '.join(tasks) or 'none'}.",
            remedy,
        )
    for name, task in tasks.items():
        if task.fingerprint != baseline_tasks[name].fingerprint:
            raise InputError(
                f"The baseline '{baseline.path}' learned task '{name}' from other data or settings.", remedy
            )


def asset(name: str) -> str:
    return resources.files("merganser.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def templates() -> jinja2.Environment:
    """Return the templates, compiled once."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(run: RunRecord, baselines: Sequence[RunRecord] = (), price: float | None = None) -> str:
    """Return the page of ``run`` as HTML; see :func:`write_report`."""
    for baseline in baselines:
        check_comparable(run, baseline)
    runs = [run, *baselines]
    kept = [answers_of(run).answers for run in runs]  # read once, and held until the page is complete
    names = overview.run_names(runs)
    tasks = run.courses()
    script = asset("report.js")
    data = chart_data(run, baselines, noise_of(tasks))
    template = templates().get_template("report.html.j2")
    html = template.render(
        run=run,
        title=run_title(run),
        standfirst=sections.standfirst(run),
        when=day(run.info.created),
        runs=runs,
        names=names,
        **_scores(runs, tasks, names),
        **_steps(run, data),
        memory=sections.memory(run),
        cost=sections.cost(run, price),
        trained=sections.trained(run),
        tasks=sections.tasks(run),
        path=shlex.quote(run.path),
        # SVG elements made by this package, every text of the run escaped in them.
        curves=[Markup(image) for image in curve_images(data)],
        config=yaml_document(_shortened(run.info.model_dump(mode="json")["config"])),
        data=embedded_json({"tasks": [_without_band(task) for task in data["tasks"]], "merges": data["merges"]}),
        # The style and the script are this package's own files; the policy in the page's head lets nothing else run.
        style=Markup(asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    del kept
    return html


def _scores(runs: Sequence[RunRecord], tasks: Sequence[TaskCourse], names: Sequence[str]) -> dict[str, Any]:
    """Return what the template shows of answers and scores."""
    run, *baselines = runs
    return {
        "verdict": overview.verdict(run, tasks),
        "bells": overview.dumbbells(tasks, sections.watched_marks(run), [baseline.courses() for baseline in baselines]),
        "headlines": overview.headlines(runs, names),
        "side_by_side": overview.side_by_side(runs, names),
        "definitions": overview.definitions(runs),
        "flips": flips(run, tasks),
        "matrix": matrix(run, tasks, baselines, names[1:]),
    }


def _steps(run: RunRecord, data: dict[str, Any]) -> dict[str, Any]:
    """Return what the template shows of steps and merges."""
    return {
        "ledger": sections.ledger(run),
        "causes": [(letter, cause, cause_title(cause)) for cause, letter in CAUSE_LETTER.items()],
        "thinned": max((task["width"] for task in data["tasks"]), default=1),
        "points": points_per_task(run),
        "stride": merge_stride(run),
        "any_refused": any(merge.status == "refused" for merge in run.merges),
        "has_signals": any(task["x"] for task in data["tasks"]),
        "charted": [task["name"] for task in data["tasks"]],
        "weights_known": weight_numbers(run) is not None,
    }


def _without_band(task: dict[str, Any]) -> dict[str, Any]:
    """Leave out the band of a task whose points are single steps: it is the line itself."""
    if task["width"] > 1:
        return task
    return {**task, **{kind: {"mean": task[kind]["mean"]} for kind in ("loss", "probe")}}


def _shortened(value: Any) -> Any:
    """Return a configuration with at most :data:`MOST_SHOWN` values of each list: a task may have 100,000 labels."""
    if isinstance(value, dict):
        short = {key: _shortened(part) for key, part in itertools.islice(value.items(), MOST_SHOWN)}
        left = len(value) - len(short)
        return {**short, f"... and {left:,} more": "see run.yaml"} if left else short
    if isinstance(value, list):
        left = len(value) - MOST_SHOWN
        return [*map(_shortened, value[:MOST_SHOWN]), *([f"... and {left:,} more, see run.yaml"] if left > 0 else [])]
    return value


def write_report(
    run: RunRecord,
    out: Path,
    baselines: Sequence[RunRecord] = (),
    *,
    price: float | None = None,
    remedy: str = ANOTHER_FOLDER,
) -> Path:
    """Write the page of ``run`` to the file ``out`` and return its path.

    The page begins with the verdict: what was learned, what was lost, and whether to keep it. It loads nothing from
    anywhere.

    Args:
        run: the run to show.
        out: the file to write; replaced where it exists, its folder created where absent.
        baselines: other runs over the same tasks (for instance plain sequential fine-tuning) to show beside it.
        price: of an hour of the machine, in any currency, to show what the run cost.
        remedy: what to do where ``out`` cannot be written, for the message.

    Raises:
        InputError: a baseline learned other tasks or other data, or ``out`` cannot be written.
        RunError: writing stopped half-way (a full disk).
    """
    return write_whole(out, sealed_text(render(run, baselines, price).encode("utf-8")), remedy)
