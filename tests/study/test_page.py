"""The page of a study and its figures: what it says, where its numbers lead, and that it loads nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from merganser.study.cell_record import CellRecord, read_cells, write_cell
from merganser.study.cell_sections import common_settings
from merganser.study.comparison import compare
from merganser.study.figures import write_study_figures
from merganser.study.page import write_study_page
from tests.study.made_up import cell, cost, study


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[CellRecord]:
    """Two folders of records, as of two people."""
    cells = study({"replay": 0.6, "aim": 0.75, "<b>odd</b>": 0.602}, orders=("1", "2"), seeds=3, n=30)
    cells = [c if c.method == "replay" else c.model_copy(update={"cost": cost(rehearsed=900)}) for c in cells]
    trials = [cell("replay", options={"share": share}, level=0.5 + share, tuning="grid", n=10) for share in (0.05, 0.1)]
    folder = tmp_path_factory.mktemp("cells")
    for number, record in enumerate([*cells, *trials]):
        write_cell(folder / f"person-{number % 2}", record.model_copy(update={"name": f"cell-{number}"}))
    return read_cells(folder)


@pytest.fixture(scope="module")
def page(records: list[CellRecord], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("study")
    run = folder / records[0].run
    run.mkdir(parents=True)
    (run / "report.html").write_text("the page of a run")
    return write_study_page(records, folder / "study.html", title="Topics").read_text()


def test_the_page_begins_with_what_was_found(page: str) -> None:
    headline = re.search("<h1>(.*?)</h1>", page)
    assert headline is not None
    assert re.fullmatch(
        r"aim is better than replay by \d+\.\d points; &lt;b&gt;odd&lt;/b&gt; cannot be told apart from it\.",
        headline[1],
    )
    for said in ("cannot be told apart", "1.8×", "What tuning tried", "share: 0.1", "Pareto front", "cost more"):
        assert said in page


def test_every_link_leads_somewhere(page: str, records: list[CellRecord]) -> None:
    ids = set(re.findall(r'id="([^"]+)"', page))
    targets = re.findall(r'href="#([^"]+)"', page)
    assert len(targets) > 60
    assert set(targets) <= ids
    assert {f"cell-{record.name}" for record in records if record.tuning is None} <= ids
    assert f'<a href="{records[0].run.replace("<", "%3C").replace(">", "%3E")}/report.html">' in page


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
