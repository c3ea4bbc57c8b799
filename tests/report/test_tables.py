"""The CSV files, read back with the standard reader."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.report.page import render
from merganser.report.sections import trained as trained_on
from merganser.report.tables import write_tables
from merganser.runs.record import RunRecord, TrainedRecord
from tests.report.conftest import TOPICS, make_run


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_tables_hold_every_number(tmp_path: Path) -> None:
    run = make_run(TOPICS, steps=500, references=True)
    paths = write_tables(run, tmp_path / "tables")
    assert [path.name for path in paths] == [
        "scores.csv", "summary.csv", "merges.csv", "signals.csv", "memory.csv", "cost.csv",
        "trained.csv",
    ]  # fmt: skip
    scores, summary, merges, signals, memory, cost, trained = map(read, paths)

    assert trained == []
    assert len(scores) == 6 * 5 + 5
    entry = next(line for line in scores if line["row"] == "3" and line["task"] == "newsgroups")
    assert entry["after"] == "tweets"
    assert entry["state"] == "earlier"
    assert float(entry["score"]) == run.scores.rows[3].scores["newsgroups"].value
    assert float(entry["stderr"]) == run.scores.rows[3].scores["newsgroups"].stderr
    assert (entry["n"], entry["metric"]) == ("200", "accuracy")
    assert [line["state"] for line in scores if line["row"] == "2"] == ["earlier", "own", "later", "later", "later"]
    assert {line["after"] for line in scores if line["row"] == "0"} == {"before training"}
    assert [line["score"] for line in scores if line["row"] == "alone"] == ["0.92"] * 5

    assert [line["metric"] for line in summary] == ["OP", "BWT", "FWT"]
    assert summary[2]["value"] == ""
    assert summary[0]["title"] == "OP, overall performance"
    assert summary[0]["definition"].startswith("Overall performance")

    assert len(merges) == len(run.merges)
    assert merges[0]["cosine"] == ""
    assert (merges[1]["cause"], merges[1]["cosine"], merges[1]["step"]) == ("forced", "-0.25", "30")

    assert len(signals) == 5 * 500
    assert signals[0]["probe"] == ""
    assert float(signals[777]["loss"]) == run.signals["reuters"][277].loss

    assert (memory[1]["task"], memory[1]["bytes"], memory[1]["share"]) == ("reuters", "2468", "0.02")
    assert memory[1]["method_weights_bytes"] == "2400000"
    assert float(cost[0]["merging_share"]) == pytest.approx(0.2)
    assert float(cost[0]["other_seconds"]) == pytest.approx(20 - 10 - 1 - 2 - 0.25 - 0.75 - 0.1 - 4)


def test_names_and_missing_numbers(tmp_path: Path) -> None:
    name = 'a "quoted", name\nover two lines'
    run = make_run([name, "b"], together=True, merging=False)
    run.signals[name][0].loss = float("inf")
    run.tasks[0].cost.seconds = 0.0
    scores, _, merges, signals, _, cost, _ = map(read, write_tables(run, tmp_path))
    assert scores[2]["after"] == f"{name} + b"
    assert merges == []
    assert (signals[0]["task"], signals[0]["loss"]) == (name, "")
    assert cost[0]["merging_share"] == ""


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "\ta"])
def test_a_text_is_no_formula(name: str, tmp_path: Path) -> None:
    """Spreadsheets run cells that begin so; numbers stay numbers."""
    run = make_run(["a", name])
    run.scores.metrics[name] = name
    run.merges[0].reason = name
    run.merges[0].cosine = -0.25
    scores, summary, merges, signals, memory, cost, _ = map(read, write_tables(run, tmp_path))
    assert [row["task"] for row in cost] == ["a", f"'{name}"]
    assert {row["task"] for row in (*scores, *memory, *signals, *merges)} == {"a", f"'{name}"}
    assert scores[1]["metric"] == merges[0]["reason"] == f"'{name}"
    assert merges[0]["cosine"] == "-0.25"
    assert float(summary[1]["value"]) < 0


def test_a_file_in_the_folders_place(run: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("")
    with pytest.raises(InputError, match="Cannot create"):
        write_tables(run, tmp_path / "tables")


def test_a_pipe_in_a_files_place_is_not_replaced(run: RunRecord, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scores.csv")
    with pytest.raises(InputError, match="is a device or a pipe, not a file"):
        write_tables(run, tmp_path)
    assert (tmp_path / "scores.csv").is_fifo()


def test_sources_of_a_mix_are_shown_with_their_shares(tmp_path: Path) -> None:
    run = make_run(TOPICS, steps=5)
    assert trained_on(run) == []
    run.tasks[0].trained = [
        TrainedRecord(source="task", examples=50, rows=75, tokens=600),
        TrainedRecord(source="general.jsonl", share=0.25, examples=9, rows=25, tokens=1400),
    ]
    own, mixed = trained_on(run)
    assert (own["source"], own["asked"], own["rows_share"], own["tokens_share"]) == (
        "its own examples", "–", "75 %", "30 %",
    )  # fmt: skip
    assert (mixed["asked"], mixed["rows"], mixed["tokens_share"]) == ("25 %", "25", "70 %")
    assert "Trained on" in render(run)
    assert len(read(write_tables(run, tmp_path)[-1])) == 2
