"""The cells of a study as the page lists them: method by method, each with what distinguishes it from all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.files.documents import yaml_document
from merganser.report.formatting import MISSING, plural, score
from merganser.study.cell_record import CellRecord
from merganser.study.costs import seconds_of
from merganser.study.page_parts import order_id
from merganser.study.results import StreamResult
from merganser.study.tables import cost

Links = Mapping[str, str]
"""Cell name -> address of the page of its run, or of its record."""

_ABSENT = object()


@dataclass(frozen=True)
class CommonSettings:
    """What is the same in all cells of a study.

    Attributes:
        configuration: keys with the values that all cells have.
        versions, hardware: likewise.
    """

    configuration: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, str]


def common_settings(records: Sequence[CellRecord]) -> CommonSettings:
    """Return what all cells have in common."""
    return CommonSettings(
        _common([record.configuration for record in records]),
        _common([record.versions for record in records]),
        _common([record.hardware for record in records]),
    )


def _common(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, *others = mappings
    common: dict[str, Any] = {}
    for key, value in first.items():
        values = [other.get(key, _ABSENT) for other in others]
        if all(other == value for other in values):
            common[key] = value
        elif isinstance(value, Mapping):
            below = [value, *(other for other in values if isinstance(other, Mapping))]
            if len(below) == len(mappings) and (inner := _common(below)):
                common[key] = inner
    return common


def _without(value: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a mapping has beyond what is common."""
    rest: dict[str, Any] = {}
    for key, part in value.items():
        if key not in common:
            rest[key] = part
        elif part != common[key] and isinstance(part, Mapping) and (inner := _without(part, common[key])):
            rest[key] = inner
    return rest


def cell_sections(
    result: StreamResult, ids: Mapping[str, str], links: Links, common: CommonSettings
) -> Iterator[dict[str, Any]]:
    """Yield a section per method of a stream, with its cells in a group per order."""
    for rank, method in enumerate(result.methods, 1):
        with_fwt = any(cell.fwt is not None for cell in method.cells)
        yield {
            "id": ids[method.label],
            "rank": rank,
            "label": method.label,
            "stream": result.stream,
            "runs": plural(len(method.cells), "cell"),
            "seconds": result.seconds,
            "fwt": with_fwt,
            "groups": [
                {
                    "id": order_id(result, ids[method.label], order),
                    "rows": [
                        _row(cell, result.seconds, links.get(cell.name, ""), common, with_fwt)
                        for cell in method.cells
                        if cell.order == order
                    ],
                }
                for order in dict.fromkeys(cell.order for cell in method.cells)
            ],
        }


def _row(cell: CellRecord, kind: str, link: str, common: CommonSettings, with_fwt: bool) -> dict[str, Any]:
    spent = cell.cost
    return {
        "id": f"cell-{cell.name}",
        "name": cell.name,
        "order": cell.order,
        "seed": str(cell.seed),
        "numbers": [
            *(score(value) for value in (cell.op, cell.bwt, *([cell.fwt] if with_fwt else []))),
            f"{spent.examples_trained:,} + {spent.examples_rehearsed:,}",
            cost("seconds", seconds_of(cell, kind)),
            cost("bytes", float(cell.bytes_stored)),
        ],
        "link": link,
        "run": cell.run,
        "finals": [
            (task, score(cell.final[task].value) if task in cell.final else MISSING) for task in cell.tasks
        ],
        "stored": [(name, cost("bytes", float(count))) for name, count in cell.cost.bytes_stored.items()],
        "own": _yaml(
            {
                "options": cell.options,
                "configuration": _without(cell.configuration, common.configuration),
                "versions": _without(cell.versions, common.versions),
                "hardware": _without(cell.hardware, common.hardware),
            }
        ),
        "finished": cell.finished,
    }  # fmt: skip


def _yaml(parts: Mapping[str, Any]) -> str:
    known = {key: value for key, value in parts.items() if value}
    return yaml_document(known) if known else ""
