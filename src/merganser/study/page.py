"""The page of a study: one self-contained HTML file; a folder of cell records is all that it needs."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context

from merganser.files.documents import yaml_document
from merganser.report.curves import inline_svg
from merganser.report.files import ANOTHER_FOLDER, write_whole
from merganser.report.formatting import score
from merganser.report.page import asset, templates
from merganser.runs.checksums import sealed_text
from merganser.study import page_parts
from merganser.study.cell_record import RECORDS, CellRecord, describe
from merganser.study.cell_sections import Links, cell_sections, common_settings
from merganser.study.comparison import compare
from merganser.study.figures import chart_for_page, cost_charts
from merganser.study.notes import detectable_sentence
from merganser.study.results import Axis, StreamResult
from merganser.study.tables import STANDARD_ERROR, cost, has_fwt
from merganser.study.tuning_table import tuning_tables


def render_study(
    records: Sequence[CellRecord],
    *,
    title: str = "Study",
    results: Sequence[StreamResult] | None = None,
    links: Links | None = None,
    files: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page of a study as HTML; see :func:`write_study_page`.

    Args:
        results: of the comparison; default: with the default reference.
        links: cell name -> address of its run's page or of its record; default: none is linked.
        files: names and addresses of tables and figures that lie beside the page.
    """
    results = compare(records) if results is None else results
    script = asset("study.js")
    common = common_settings(records)
    streams = [_stream(result, number) for number, result in enumerate(results)]
    return templates().get_template("study.html.j2").render(
        title=title,
        when=page_parts.when(records),
        counts=page_parts.counts(records, results),
        sentence=page_parts.sentence(results[0]) if len(results) == 1 else page_parts.study_sentence(results),
        several=len(results) > 1,
        streams=streams,
        tunings=tuning_tables(records, links or {}),
        leads=_where_names_lead(links or {}),
        sections=[
            section
            for number, result in enumerate(results)
            for section in cell_sections(result, page_parts.method_ids(result, number), links or {}, common)
        ],
        left_out=[(cell.name, describe(cell), why) for result in results for cell, why in result.left_out],
        common=yaml_document(common.configuration),
        versions={**common.versions, **common.hardware},
        files=list(files),
        definitions=page_parts.definitions(records),
        standard_error=STANDARD_ERROR,
        # The style and the script are this package's own files; the policy in the page's head lets nothing else run.
        style=Markup(asset("report.css") + asset("study.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _stream(result: StreamResult, number: int) -> dict[str, Any]:
    """Return what the template shows of one stream."""
    ids = page_parts.method_ids(result, number)
    return {
        "id": f"s{number}",
        "name": result.stream,
        "sentence": page_parts.sentence(result),
        "reference": result.reference,
        "fwt": has_fwt(result),
        "percent": f"{100 * result.confidence:g} %",
        "runs": page_parts.runs_text(result),
        "detectable": detectable_sentence(result) if result.reference else "",
        "notes": result.notes,
        "ranking": page_parts.ranking(result, ids),
        "forest": page_parts.forest(result, ids),
        "charts": _charts(result, ids),
        "budgets": page_parts.budgets(result, ids),
        "costs": page_parts.costs(result, ids),
        "matrices": page_parts.matrices(result, ids),
        "by_order": page_parts.by_order(result, ids),
        "by_task": page_parts.by_task(result, ids),
    }


def _charts(result: StreamResult, ids: dict[str, str]) -> list[tuple[str, str, Markup]]:
    labels = [str(rank) for rank in range(1, len(result.methods) + 1)]
    links = [f"#{ids[method.label]}" for method in result.methods]
    charts = []
    for name, axis, label in cost_charts(result):
        figure = chart_for_page(result, axis, labels, links)
        # Ids of markers are hashes with this salt: unique in the page, the same each time.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{result.stream} {name}"}):
            svg = inline_svg(figure, _described(result, axis, label))
        charts.append((name, label, Markup(svg)))  # made by this package, every text escaped in it
    return charts


def _described(result: StreamResult, axis: Axis | None, label: str) -> str:
    """Return what a screen reader reads of a chart."""
    points = []
    for method in result.methods:
        if axis is not None:
            points.append(f"{method.label} {score(method.op.mean)} at {cost(axis, method.cost.get(axis))}")
        elif method.bwt is not None:
            points.append(f"{method.label} {score(method.op.mean)} at {score(method.bwt.mean)}")
    return f"Overall performance in percent against {label}: {', '.join(points)}"


def write_study_page(
    records: Sequence[CellRecord],
    out: Path,
    *,
    title: str = "Study",
    results: Sequence[StreamResult] | None = None,
    study: Path | None = None,
    files: Sequence[Path] = (),
) -> Path:
    """Write the page of a study to the file ``out`` and return its path.

    It begins with what the study found; every number leads to its cells, and each cell to the page of its run, else to
    its record. What is not there when the page is written is not linked. It loads nothing from anywhere.

    Args:
        records: the cells, of one person or of several.
        out: the file to write; replaced where it exists, its folder created where absent.
        title: of the study.
        results: of the comparison (:func:`merganser.study.comparison.compare`), with the reference and the confidence
            that were chosen; default: with the default ones.
        study: folder that the runs of the records are relative to; default: the folder of ``out``.
        files: tables and figures to link, if they are there.

    Raises:
        InputError: there are no results, there is no such reference, cells of one stream were scored on different test
            examples, or ``out`` cannot be written.
        RunError: writing stopped half-way (a full disk).
    """
    folder = out.parent.absolute()
    links = cell_links(records, (study or out.parent).absolute(), folder)
    beside = [(path.name, _address(path.absolute(), folder)) for path in files if path.is_file()]
    page = render_study(records, title=title, results=results, links=links, files=beside)
    return write_whole(out, sealed_text(page.encode()), ANOTHER_FOLDER)


def cell_links(records: Sequence[CellRecord], study: Path, folder: Path) -> dict[str, str]:
    """Return cell name -> address, relative to ``folder``, of its run's page, or else of its record.

    Cells of which neither is in the folder of the study are left out.
    """
    links = {}
    for record in records:
        run = PurePosixPath(record.run)
        name = f"{PurePosixPath(record.name).name}.json"
        pages = [study / run / "report.html"]
        files = [study / above / within / name for above in run.parents for within in (RECORDS, "")]
        target = next((path for path in pages + files if path.is_file()), None)
        if target is not None:
            links[record.name] = _address(target, folder)
    return links


def _where_names_lead(links: Links) -> str:
    """Say where the name of a cell leads."""
    pages = sum(address.endswith(".html") for address in links.values())
    write = "merganser report RUN writes it, and --table links it then"
    if not links:
        return "Neither runs nor records of the cells lay beside this page when it was written."
    if not pages:
        return f"The name of a cell leads to its record. There is no page of its run: {write}."
    if pages < len(links):
        return f"The name of a cell leads to the page of its run, or where there is none to its record: {write}."
    return "The name of a cell leads to the page of its run."


def _address(path: Path, folder: Path) -> str:
    from urllib.parse import quote

    return quote(Path(os.path.relpath(path, folder)).as_posix())
