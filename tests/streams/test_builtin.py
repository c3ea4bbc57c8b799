"""Built-in orders and the command that lists them."""

from __future__ import annotations

import json

import typer
from typer.testing import CliRunner

from merganser.cli.streams import streams
from merganser.streams.builtin import BUILTIN, task_kind
from merganser.streams.images.image_sets import IMAGE_SETS


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(streams)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_orders_of_a_family_hold_the_same_tasks() -> None:
    for family, size in (("standard-cl", 4), ("long-sequence", 15), ("superni", 15)):
        orders = [stream.tasks for name, stream in BUILTIN.items() if name.startswith(family)]
        assert all(len(order) == len(set(order)) == size for order in orders)
        assert len({frozenset(order) for order in orders}) == 1
        assert len(set(orders)) == len(orders)


def test_positions_in_the_published_orders() -> None:
    assert BUILTIN["long-sequence-2"].tasks[:3] == ("multirc", "boolqa", "wic")
    assert BUILTIN["long-sequence-3"].tasks[-1] == "wic"
    assert BUILTIN["superni-1"].tasks[-2:] == ("task1687", "task875")
    assert BUILTIN["superni-2"].tasks[5] == "task1687"


def test_kinds() -> None:
    assert [task for task in BUILTIN["superni-1"].tasks if task_kind(task) == "classification"] == [
        "task363",
        "task1687",
        "task875",
    ]
    assert task_kind("yahoo") == "classification"
    assert task_kind("mine") is None
    assert BUILTIN["superni-2"].metric == "rouge_l; exact_match on task1687, task363, task875"


def test_the_table_lists_every_stream() -> None:
    output = run()
    for name in (*BUILTIN, "demo", *IMAGE_SETS):
        assert name in output
    assert "book-excerpts" in output


def test_json() -> None:
    listed = {row["name"]: row for row in json.loads(run("--json"))}
    assert list(listed) == [*BUILTIN, "demo", *IMAGE_SETS]
    assert listed["imagenet-r-50"]["needs_folder"] is False
    assert listed["standard-cl-1"]["tasks"] == ["dbpedia", "amazon", "yahoo", "agnews"]
    assert listed["demo"]["needs_folder"] is False
    assert len(listed["demo"]["tasks"]) == 5
