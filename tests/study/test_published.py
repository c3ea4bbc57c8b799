"""Results of a folder: of a study, and of records of several people."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pytest

from merganser.errors import InputError
from merganser.study.cell_record import read_cell, read_cells, write_cell
from merganser.study.published import read_results
from tests.study.made_up import cell


def test_results_of_a_study_are_published_beside_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_figure(_: object, folder: Path) -> list[Path]:  # test_page draws them
        folder.mkdir(exist_ok=True)
        (folder / "differences.svg").touch()
        return [folder / "differences.svg", folder / "absent.svg"]

    monkeypatch.setattr("merganser.study.published.write_study_figures", one_figure)
    folder = copied / "out"
    results = read_results(folder)
    assert results.table.results[0].reference == "replay"
    assert {method.label for method in results.table.results[0].methods} == {"sequential", "replay", "joint"}
    assert results.publish() == folder / "study.html"
    assert {path.name for path in (folder / "results").iterdir()} == {
        "study.md", "study.tex", "study.csv", "cells.csv", "figures"
    }  # fmt: skip
    page = (folder / "study.html").read_text()
    assert 'href="results/figures/differences.svg"' in page
    assert "absent.svg" not in page
    assert 'href="records/replay%2Corder-2%2Cs0.json"' in page
    (folder / "cells" / "replay,order-2,s0" / "report.html").touch()
    results.publish()
    page = (folder / "study.html").read_text()
    assert 'href="cells/replay%2Corder-2%2Cs0/report.html"' in page
    assert 'href="records/replay%2Corder-2%2Cs0.json"' not in page
    # A page beside the records does not disturb them, and records alone have results as well.
    assert len(read_results(folder / "records", reference="replay").records) == 6
    config = folder / "records" / "replay,order-1,s0.json"
    record = read_cells(folder / "records")[2]
    record.configuration["memory"]["number"] = 5
    write_cell(folder / "records", record)
    assert config.is_file()
    assert len(read_results(folder).records) == 5  # what the study has otherwise now is left out


def test_folders_without_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no records"):
        read_results(tmp_path)
    write_cell(tmp_path, cell("aim", n=10, tuning="grid"))
    with pytest.raises(InputError, match="no results of cells"):
        read_results(tmp_path)


def test_a_folder_of_other_files_is_no_damaged_study(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for folder in (tmp_path, finished / "out" / "cells" / "replay,order-1,s0"):
        with pytest.raises(InputError, match=r"holds no study: it has neither study\.json nor a record of a cell"):
            read_results(folder)
    (tmp_path / "config.json").unlink()
    file = write_cell(tmp_path, cell("aim", n=10))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="is damaged"):
        read_results(tmp_path)


def test_records_of_two_people_that_have_one_name_are_told_apart(tmp_path: Path) -> None:
    for person, share in (("ann", 0.1), ("bob", 0.2)):
        for seed in (0, 1):
            record = cell("replay", seed=seed, n=20, options={"share": share}, level=0.5 + share)
            run = f"cells/replay,s{seed}"
            changes = {"name": f"replay,s{seed}", "run": run}
            write_cell(tmp_path / person / "records", record.model_copy(update=changes))
            (tmp_path / person / run).mkdir(parents=True)
    write_cell(tmp_path, cell("aim", n=20))
    results = read_results(tmp_path)
    names = {record.name for record in results.records}
    assert len(names) == 5
    labels = {method.label: method for method in results.table.results[0].methods}
    assert set(labels) == {"aim", "replay (share=0.1)", "replay (share=0.2)"}
    assert [len(method.cells) for method in labels.values() if "replay" in method.label] == [2, 2]
    page = results.publish().read_text()
    for person in ("ann", "bob"):
        for record in labels[f"replay (share={0.1 if person == 'ann' else 0.2})"].cells:
            assert record.name.startswith(f"{person}/records/")
            assert f'id="cell-{record.name}"' in page
            assert f'href="{quote(record.name)}.json"' in page
            assert (tmp_path / record.run).is_dir()
            assert record.run.startswith(f"{person}/cells/")


def test_records_of_two_people_who_name_an_order_otherwise_are_of_one_order(finished: Path, tmp_path: Path) -> None:
    """Joint training has one run for all orders: its records have the order of those beside them."""
    for person in ("ann", "bob"):
        for file in (finished / "out" / "records").glob("*.json"):
            record = read_cell(file)
            if person == "bob":
                texts = (record.name, record.run, record.order)
                turned = [text.replace("order-1", "there").replace("order-2", "back") for text in texts]
                changes = dict(zip(("name", "run", "order"), turned, strict=True))
                record = record.model_copy(update={**changes, "seed": 1})
            write_cell(tmp_path / person / "records", record)
    records = read_cells(tmp_path)
    assert {(record.order, *record.tasks) for record in records if record.method != "joint"} == {
        ("order-1", "mood", "topic"),
        ("back", "topic", "mood"),
    }
    assert Counter((record.order, record.seed) for record in records if record.method == "joint") == Counter(
        itertools.product(("back", "order-1"), (0, 1))
    )
    (result,) = read_results(tmp_path).table.results
    assert (result.orders, result.seeds) == (("back", "order-1"), (0, 1))
    again = read_cell(tmp_path / "bob" / "records" / "replay,there,s0.json")
    write_cell(tmp_path / "cid", again.model_copy(update={"seed": 0}))
    with pytest.raises(InputError, match=r"record the same cell: replay .* \(its order is called '.*' and '.*'\)"):
        read_cells(tmp_path)


def test_files_are_written_before_a_reader_of_the_tables_can_leave(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ``merganser study DIR --table | head -3``."""
    from merganser.cli import study_view

    def gone(*arguments: object, **options: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(study_view.OutputConsole, "print", gone)
    with pytest.raises(BrokenPipeError):
        study_view.show_table(copied / "out")
    assert (copied / "out" / "study.html").is_file()
    assert (copied / "out" / "results" / "study.md").is_file()
