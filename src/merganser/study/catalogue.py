"""The catalogue of published figures: papers, tables, settings, and the study that reproduces each.

The data are ``catalogue.yaml``. A figure stands there only where a source gives it, with a mark of how it is known.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from merganser.config import explain_options
from merganser.errors import InputError, nearest
from merganser.files.atomic import write_text
from merganser.files.documents import parse_yaml, read_text, yaml_document
from merganser.options import StrictOptions
from merganser.study.cells import Study, make_study

DATA = Path(__file__).with_name("catalogue.yaml")

Measure = Literal["op", "bwt", "fwt", "forgetting"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""Numbers of a published table, in percent."""

TEXT_DATA = (
    "data_longsequence and data_superni, as released with AimMerging (github.com/WoodScene/AimMerging): each has "
    "train/, dev/ and test/ with files NAME_T5.json"
)


class PublishedRow(StrictOptions):
    """Figures of one method, from one source."""

    method: str = Field(description="its name in the study, or as the source has it if no method here is the same")
    minus: str | None = Field(None, description="the figures are differences to this method")
    op: float | None = Field(None, description="overall performance, percent")
    bwt: float | None = Field(None, description="backward transfer, percentage points")
    fwt: float | None = Field(None, description="forward transfer against single-task models, percentage points")
    forgetting: float | None = Field(None, description="percentage points")
    source: str = Field(description="paper whose figures these are")
    evidence: str = Field(description="mark of how they are known")
    remark: str = ""

    @property
    def title(self) -> str:
        """The method, or both methods of a difference."""
        return self.method if self.minus is None else f"{self.method} − {self.minus}"

    @property
    def values(self) -> dict[Measure, float]:
        """The figures that are given."""
        given = {measure: getattr(self, measure) for measure in MEASURES}
        return {measure: value for measure, value in given.items() if value is not None}


class Part(StrictOptions):
    """Settings that several entries have."""

    use: list[str] = Field(default_factory=list, description="parts that come before this one")
    study: dict[str, Any] = Field(default_factory=dict, description="keys of a study's file; later ones change earlier")
    data: str | None = Field(None, description="name of the folder of the data, within that of all data")
    figures: list[PublishedRow] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="what differs from the paper, or is not known of it")


class EntryOptions(Part):
    """One published table."""

    paper: str
    table: str = Field(description="model, benchmark, orders")


class Paper(StrictOptions):
    """A source."""

    title: str
    arxiv: str | None = None

    @property
    def where(self) -> str:
        """Where it is found, for tables."""
        return self.title if self.arxiv is None else f"arXiv {self.arxiv}"


class CatalogueFile(StrictOptions):
    """``catalogue.yaml``."""

    evidence: dict[str, str] = Field(description="mark -> what it means for a figure")
    papers: dict[str, Paper]
    parts: dict[str, Part]
    entries: dict[str, EntryOptions]

    @model_validator(mode="after")
    def _names_exist(self) -> CatalogueFile:
        parts = [*self.parts.values(), *self.entries.values()]
        used = {name for part in parts for name in part.use}
        figures = [row for part in parts for row in part.figures]
        papers = {row.source for row in figures} | {entry.paper for entry in self.entries.values()}
        for what, names, known in (
            ("part", used, self.parts),
            ("paper", papers, self.papers),
            ("mark of evidence", {row.evidence for row in figures}, self.evidence),
        ):
            if missing := sorted(names - set(known)):
                raise ValueError(f"there is no {what} {missing[0]!r}")
        return self


@dataclass(frozen=True)
class Entry:
    """A published table with the study that reproduces it.

    Attributes:
        name: as the command takes it.
        paper: that has the table.
        table: model, benchmark, orders.
        figures: as published.
        notes: what differs from the paper, or is not known of it.
        settings: of the study's file, without the folder of the data.
        data: name of that folder; from the hub if none is given and the stream has a source there.
        sources: papers of the figures by name.
        evidence: mark -> what it means for a figure.
    """

    name: str
    paper: Paper
    table: str
    figures: Sequence[PublishedRow]
    notes: Sequence[str]
    settings: Mapping[str, Any]
    data: str
    sources: Mapping[str, Paper]
    evidence: Mapping[str, str]

    @property
    def on_hub(self) -> bool:
        """Whether the data come from the hub if no folder is given."""
        return self.data not in ("data_longsequence", "data_superni")

    def study_values(self, data: str | None = None, model: str | None = None) -> dict[str, Any]:
        """Return the contents of the study's file.

        Args:
            data: folder that holds the folder :attr:`data`; default: ``data`` beside the file, or the hub.
            model: a name or folder in the place of the published one's.
        """
        values = _merged({"name": self.name}, self.settings)
        if data is not None or not self.on_hub:
            values["stream"] = {**values["stream"], "folder": f"{data or 'data'}/{self.data}"}
        if model is not None:
            values["model"] = {**values["model"], "name": model}
        first = ("name", "model", "stream", "orders", "seeds", "methods", "reference")
        return {key: values[key] for key in sorted(values, key=lambda key: (*first, key).index(key))}

    def study(self) -> Study:
        """Return the study with its cells; nothing is read but the catalogue."""
        return make_study(self.study_values(), self.name, Path())


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return both mappings in one, the second's values before the first's; neither is changed."""
    result = dict(first)
    for key, value in second.items():
        below = result.get(key)
        if isinstance(value, Mapping):
            result[key] = _merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = list(value) if isinstance(value, list) else value
    return result


@functools.cache
def catalogue() -> dict[str, Entry]:
    """Return all entries by name, in the order of the catalogue."""
    file = explain_options(CatalogueFile, parse_yaml(read_text(DATA)), DATA.name)
    return {name: _entry(name, given, file) for name, given in file.entries.items()}


def _entry(name: str, given: EntryOptions, file: CatalogueFile) -> Entry:
    parts = [*_parts(given, file), given]
    settings: dict[str, Any] = {}
    for part in parts:
        settings = _merged(settings, part.study)
    data = [part.data for part in parts if part.data is not None]
    if not data:
        raise InputError(f"{DATA.name}: entries.{name}: no part names the data.", "Give 'data'.")
    figures = [row for part in reversed(parts) for row in part.figures]
    return Entry(
        name=name,
        paper=file.papers[given.paper],
        table=given.table,
        figures=figures,
        notes=[note for part in parts for note in part.notes],
        settings=settings,
        data=data[-1],
        sources={row.source: file.papers[row.source] for row in figures},
        evidence={row.evidence: file.evidence[row.evidence] for row in figures},
    )


def _parts(of: Part, file: CatalogueFile) -> list[Part]:
    return [part for name in of.use for part in (*_parts(file.parts[name], file), file.parts[name])]


def find_entry(name: str) -> Entry:
    """Return an entry by its name.

    Raises:
        InputError: there is none.
    """
    entries = catalogue()
    if name not in entries:
        hint = nearest(name, entries) or "List them: merganser reproduce"
        raise InputError(f"There is no entry '{name}' in the catalogue.", hint)
    return entries[name]


def study_text(entry: Entry, data: str | None = None, model: str | None = None, file: str = "STUDY.yaml") -> str:
    """Return the study's file of an entry, with a comment on what it is and how it is run.

    Args:
        data, model: as for :meth:`Entry.study_values`.
        file: its name, for the commands in the comment.
    """
    lines = [f"{entry.table}.", f"{entry.paper.title}, {entry.paper.where}.", *entry.notes, ""]
    lines += [f"merganser study {file} --out DIR --plan", f"merganser study {file} --out DIR"]
    lines += [f"merganser reproduce {entry.name} --results DIR"]
    values = entry.study_values(data, model)
    text = yaml_document(values, width=120)
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n" + text


def write_study(entry: Entry, file: Path, data: Path | None = None, model: str | None = None) -> None:
    """Write the study's file of an entry.

    Args:
        data: folder that holds the folder of the entry's data.
        model: a name or folder in the place of the published one's.

    Raises:
        InputError: the file exists, its folder does not or cannot be written to, or there are no such data.
    """
    if file.exists():
        raise InputError(f"'{file}' exists.", "Give another name, or remove it.")
    if not file.absolute().parent.is_dir():
        raise InputError(f"There is no folder '{file.parent}'.", "Create it, or give another name.")
    if data is not None and not (data / entry.data).is_dir():
        hint = (
            f"It is to hold {TEXT_DATA}."
            if not entry.on_hub
            else "It is to have train/ and test/ with a folder per class."
        )
        raise InputError(f"There is no folder '{data / entry.data}'.", hint)
    text = study_text(entry, None if data is None else str(data.absolute()), model, str(file))
    try:
        write_text(file, text)
    except OSError as error:
        raise InputError(f"'{file}' cannot be written: {error.strerror}.", "Give another name.") from error
