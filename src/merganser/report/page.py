"""The report of a run: one self-contained HTML page that opens from a file and loads nothing from the network."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from merganser.errors import InputError
from merganser.report import sections
from merganser.report.curves import curve_images
from merganser.report.files import ANOTHER_FOLDER, write_whole
from merganser.report.formatting import CAUSE_LETTER, cause_title
from merganser.report.series import POINTS, chart_data, merge_stride
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


def check_comparable(run: RunRecord, baseline: RunRecord, word: str = "baseline") -> None:
    """Refuse a baseline that learned other tasks or data: its metrics would not be comparable.

    Args:
        word: what to call it in messages.

    Raises:
        InputError: other tasks, another order, or other data or settings of a task.
    """
    remedy = "Give a run that learned the same stream to the same task."
    tasks = {task.name: task for task in run.tasks}
    baseline_tasks = {task.name: task for task in baseline.tasks}
    if list(tasks) != list(baseline_tasks):
        raise InputError(
            f"The {word} '{baseline.path}' learned other tasks than '{run.path}': "
            f"{', '.join(baseline_tasks) or 'none'} instead of {', '.join(tasks) or 'none'}.",
            remedy,
        )
    for name, task in tasks.items():
        if task.fingerprint != baseline_tasks[name].fingerprint:
            raise InputError(f"The {word} '{baseline.path}' learned task '{name}' from other data or settings.", remedy)


def _asset(name: str) -> str:
    return resources.files("merganser.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _templates() -> jinja2.Environment:
    """The templates, compiled once."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(run: RunRecord, baseline: RunRecord | None = None) -> str:
    """Return the page of ``run`` as HTML; see :func:`write_report`."""
    if baseline is not None:
        check_comparable(run, baseline)
    script = _asset("report.js")
    data = chart_data(run, baseline)
    stream = run.info.config.get("stream")
    stream_name = stream.get("name") if isinstance(stream, dict) else stream
    template = _templates().get_template("report.html.j2")
    return template.render(
        run=run,
        title=stream_name if isinstance(stream_name, str) and stream_name else Path(run.path).name or run.path,
        method=sections.method_name(run),
        standfirst=sections.standfirst(run),
        cards=sections.metric_cards(run, baseline),
        baseline=baseline,
        baseline_name=sections.method_name(baseline) if baseline else "",
        matrix=sections.matrix(run, baseline),
        memory=sections.memory(run),
        cost=sections.cost(run),
        trained=sections.trained(run),
        ledger=sections.ledger(run),
        tasks=sections.tasks(run),
        causes=[(letter, cause, cause_title(cause)) for cause, letter in CAUSE_LETTER.items()],
        thinned=max((task["width"] for task in data["tasks"]), default=1),
        points=POINTS,
        stride=merge_stride(run),
        any_refused=any(merge.status == "refused" for merge in run.merges),
        path=shlex.quote(run.path),
        has_signals=any(task["x"] for task in data["tasks"]),
        # SVG elements made by this package, every text of the run escaped in them.
        curves=[Markup(image) for image in curve_images(data)],
        names=[task["name"] for task in data["tasks"]],
        config=yaml.safe_dump(
            _shortened(run.info.model_dump(mode="json")["config"]), sort_keys=False, allow_unicode=True
        ),
        data=embedded_json({"tasks": data["tasks"], "merges": data["merges"]}),
        # The style and the script are this package's own files; the policy in the page's head lets nothing else run.
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


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


def write_report(run: RunRecord, out: Path, baseline: RunRecord | None = None, remedy: str = ANOTHER_FOLDER) -> Path:
    """Write the page of ``run`` to the file ``out`` and return its path.

    The page holds the summary metrics with their definitions, the score matrix, training loss, forgetting and learning
    signals over steps with the merges marked by cause, the planned interval, a score curve per task, the ledger, the
    memory, the cost and the configuration. It loads nothing from anywhere.

    Args:
        run: the run to show.
        out: the file to write; replaced where it exists, its folder created where absent.
        baseline: another run over the same tasks (for instance plain sequential fine-tuning) to show beside it.
        remedy: what to do where ``out`` cannot be written, for the message.

    Raises:
        InputError: the baseline learned other tasks or other data, or ``out`` cannot be written.
        RunError: writing stopped half-way (a full disk).
    """
    return write_whole(out, sealed_text(render(run, baseline).encode("utf-8")), remedy)
