"""The page of a study and its figures: what it says, where its numbers lead, and that it loads nothing."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from matplotlib.figure import Figure

from merganser.study.cell_record import CellRecord, read_cells, write_cell
from merganser.study.cell_sections import common_settings
from merganser.study.comparison import compare
from merganser.study.figure_labels import label_points
from merganser.study.figures import percent_ticks, write_study_figures
from merganser.study.page import write_study_page
from merganser.study.tables import StudyTable
from tests.study.made_up import cell, cost, study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of records, as of two people, and the page of one run."""
    cells = study({"replay": 0.6, "aim": 0.75, "<b>odd</b>": 0.602}, orders=("1", "2"), seeds=3, n=30)
    cells = [c if c.method == "replay" else c.model_copy(update={"cost": cost(rehearsed=900)}) for c in cells]
    trials = [cell("replay", options={"share": share}, level=0.5 + share, tuning="grid", n=10) for share in (0.05, 0.1)]
    folder = tmp_path_factory.mktemp("cells")
    for number, record in enumerate([*cells, *trials]):
        write_cell(folder / f"person-{number % 2}", record.model_copy(update={"name": f"cell-{number}"}))
    run = folder / read_cells(folder)[0].run
    run.mkdir(parents=True)
    (run / "report.html").write_text("the page of a run")
    return folder


@pytest.fixture(scope="module")
def records(folder: Path) -> list[CellRecord]:
    return read_cells(folder)


@pytest.fixture(scope="module")
def page(records: list[CellRecord], folder: Path) -> str:
    return write_study_page(records, folder / "study.html", title="Topics", study=folder).read_text()


def test_the_page_begins_with_what_was_found(page: str) -> None:
    headline = re.search("<h1>(.*?)</h1>", page)
    assert headline is not None
    assert re.fullmatch(
        r"aim is better than replay by \d+\.\d points; &lt;b&gt;odd&lt;/b&gt; cannot be told apart from it\.",
        headline[1],
    )
    for said in ("cannot be told apart", "1.8×", "What tuning tried", "share: 0.1", "Pareto front", "cost more"):
        assert said in page


def test_every_link_leads_somewhere(page: str, records: list[CellRecord], folder: Path) -> None:
    ids = set(re.findall(r'id="([^"]+)"', page))
    targets = re.findall(r'href="#([^"]+)"', page)
    assert len(targets) > 60
    assert set(targets) <= ids
    assert {f"cell-{record.name}" for record in records if record.tuning is None} <= ids
    files = set(re.findall(r'href="([^#"][^"]*)"', page)) - {"data:,"}
    assert len(files) == len(records)  # those of trials too
    assert {unquote(file) for file in files} == {
        f"{records[0].run}/report.html",
        *(str(file.relative_to(folder)) for file in folder.glob("*/cell-*.json") if file.stem != records[0].name),
    }
    assert "leads to the page of its run, or where there is none to its record" in page


class Numbers(HTMLParser):
    """Numbers in the tables and lists of a page that are in no link, but for what a cell is and its settings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.place = self.linked = 0
        self.unlinked: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("meta", "link", "br"):
            return
        said = dict(attrs).get("class") or ""
        shown = tag in ("td", "ol", "ul", "h3") and "track" not in said
        hidden = tag in ("a", "pre", "summary", "p", "script", "style") or "unseen" in said
        self.inside.append("link" if hidden else "place" if shown else "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "link", "br"):
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if "place" in self.inside and "link" not in self.inside and re.search(r"\d", data):
            self.unlinked.append(data)


def test_every_number_leads_to_the_cells_that_it_comes_from(page: str, records: list[CellRecord]) -> None:
    identity = {*(cell.order for cell in records), *(str(cell.seed) for cell in records)}
    assert [number for number in Numbers(page).unlinked if number not in identity] == [
        "replay on topics: 2 settings in 2 cells, 2,400 examples"  # the row of each setting names its cells
    ]
    groups = dict(re.findall(r'<tbody id="(s0m\do\d)">(.*?)</tbody>', page, re.DOTALL))
    aim = {order: {f"cell-{c.name}" for c in records if (c.method, c.order) == ("aim", order)} for order in ("1", "2")}
    rows = {name: set(re.findall(r'<tr id="([^"]+)"', group)) for name, group in groups.items()}
    assert (rows["s0m1o0"], rows["s0m1o1"]) == (aim["1"], aim["2"])
    matrices = page[page.index('id="s0-matrices"') : page.index('id="s0-orders"')]
    scores = re.findall(r'<td[^>]*><a href="#(\w+)">', matrices)
    assert Counter(scores) == dict.fromkeys(groups, 4 * 5)  # tasks and rounds


def test_a_page_alone_has_no_link_to_what_is_not_beside_it(records: list[CellRecord], tmp_path: Path) -> None:
    page = write_study_page(records, tmp_path / "alone.html", files=[tmp_path / "study.tex"]).read_text()
    assert re.findall(r'href="([^#"][^"]*)"', page) == ["data:,"]
    assert "Neither runs nor records of the cells lay beside this page" in page
    assert "study.tex" not in page
    (tmp_path / "study.tex").touch()
    page = write_study_page(records, tmp_path / "alone.html", files=[tmp_path / "study.tex"]).read_text()
    assert re.findall(r'href="([^#"][^"]*)"', page) == ["data:,", "study.tex"]


def test_intervals_end_where_the_metric_does(tmp_path: Path) -> None:
    """Of two runs that differ, an interval is wider than the scores can be."""
    cells = study({"replay": 0.9, "aim": 0.85}, orders=("1",), seeds=2, noise=0.1, n=20)
    results = compare(cells)
    assert [(m.op.low or 0) < 0 and (m.op.high or 0) > 1 for m in results[0].methods] == [True, True]
    page = write_study_page(cells, tmp_path / "study.html").read_text()
    figure = next(path for path in write_study_figures(results, tmp_path) if path.name == "ranking.svg").read_text()
    texts = [
        page,
        StudyTable(results).markdown(),
        StudyTable(results).latex(),
        *StudyTable(results).text().splitlines(),
    ]
    shown = [end for text in texts for ends in re.findall(r"\[([\d.]+), ([\d.]+)\]", text) for end in ends]
    assert set(shown) == {"0.0", "100.0"}
    assert not re.search(r"[>\s](?:1[1-9]\d|[−-]\d\d)[<\s]", re.sub(r"<style.*?</style>", "", figure, flags=re.DOTALL))
    ends = [-1.05, -1.0, -0.05, 0.0, 1.0, 1.05]
    assert [percent_ticks(0.0)(end, 0) for end in ends] == ["", "", "", "0", "100", ""]
    assert [percent_ticks(-1.0)(end, 0) for end in ends] == ["", "−100", "−5", "0", "100", ""]
    changes = re.findall(r"\[−([\d.]+), \+([\d.]+)\]", page)
    assert changes
    assert max(float(end) for ends in changes for end in ends) <= 100


def test_what_was_not_measured_is_not_explained(page: str, records: list[CellRecord], tmp_path: Path) -> None:
    assert "FWT" not in page
    assert "BWT, backward transfer" in page
    measured = [
        record.model_copy(
            update={
                "summary": [
                    metric.model_copy(update={"value": 0.1}) if metric.name.startswith("FWT") else metric
                    for metric in record.summary
                ]
            }
        )
        for record in records
    ]
    assert "FWT (single-task), forward transfer" in write_study_page(measured, tmp_path / "study.html").read_text()


def test_wide_tables_say_that_they_scroll(page: str) -> None:
    """Those of few columns, the matrices, are narrower than a telephone."""
    wide = re.findall(r'(class="hint" hidden>[^<]*</p>\n)?<div class="scroll"[^>]*>\n<table class="(plain[^"]*)', page)
    assert len(wide) == 7  # costs, orders, tasks, tuning, and the cells of three methods
    assert all(hint for hint, _ in wide)


def test_labels_of_points_that_coincide_stand_beside_each_other() -> None:
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    points = [(1.0, 1.0), (1.0, 1.0), (1.001, 1.0), (2.0, 2.0)]
    axes.scatter(*zip(*points, strict=True))
    label_points(axes, points, ["1", "2", "3", "4"])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4"]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_the_page_loads_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert page.count("<svg") == 3  # examples, seconds, backward transfer; no method stores anything


def test_what_cells_have_in_common_is_shown_once(records: list[CellRecord], page: str) -> None:
    common = common_settings(records)
    assert common.configuration["training"] == {"epochs": 1, "learning_rate": 0.001}
    assert "method" not in common.configuration
    assert page.count("learning_rate: 0.001") == 1


def test_figures_for_papers(records: list[CellRecord], tmp_path: Path) -> None:
    written = write_study_figures(compare([each for each in records if (each.order, each.seed) == ("1", 0)]), tmp_path)
    assert {path.name for path in written} == {
        "ranking.svg", "differences.svg", "examples.svg", "seconds.svg", "bwt.svg", "matrices_1.svg"
    }  # fmt: skip
    assert "&lt;b&gt;odd" in (tmp_path / "ranking.svg").read_text()
