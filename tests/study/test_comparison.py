"""Methods compared: ranking, paired differences, costs, what is left out; and the tables of it."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.study.cell_record import CellRecord
from merganser.study.comparison import compare, method_labels
from merganser.study.costs import budget_views
from merganser.study.order_names import RecordedOrder, arrangement, names_of_orders
from merganser.study.results import StreamResult
from merganser.study.tables import StudyTable, write_tables
from tests.study.made_up import TASKS, cell, cost, study

LEVELS = {"sequential": 0.55, "replay": 0.7, "aim": 0.702, "joint": 0.8}


@pytest.fixture(scope="module")
def records() -> list[CellRecord]:
    costs = {"sequential": cost(), "replay": cost(rehearsed=300, stored=4000), "aim": cost(1200, 600, 90, 2_000_000)}
    return [
        record.model_copy(update={"cost": costs.get(record.method, cost(9000, 0, 300))})
        for record in study(LEVELS, seeds=3, n=60)
    ]


@pytest.fixture(scope="module")
def table(records: list[CellRecord]) -> StudyTable:
    return StudyTable(compare(records))


@pytest.fixture(scope="module")
def result(table: StudyTable) -> StreamResult:
    return table.results[0]


def test_methods_are_ranked_and_compared_with_the_reference(result: StreamResult) -> None:
    assert [method.label for method in result.methods] == ["joint", "aim", "replay", "sequential"]
    assert result.reference == "replay"
    said = {method.label: method.difference and method.difference.verdict for method in result.methods}
    assert said == {"joint": "better", "aim": "cannot be told apart", "replay": None, "sequential": "worse"}
    joint = result.method("joint").difference
    assert joint is not None
    assert joint.estimate.mean == pytest.approx(0.1, abs=0.02)
    assert joint.estimate.permutation_p == pytest.approx(2 / 2**9)
    assert joint.p == pytest.approx(3 * (joint.estimate.p or 0), abs=1e-9)  # Holm
    assert (joint.examples, joint.orders_ahead, joint.orders) == (240, 3, 3)
    assert list(result.method("aim").by_order) == ["1", "2", "3"]
    assert result.method("aim").by_task["books"].runs == 9


def test_methods_that_cost_more_are_marked(result: StreamResult) -> None:
    assert dict(result.method("sequential").more) == {}
    assert result.method("aim").more == {"examples": 1.2, "seconds": 2.25, "bytes": 500.0}
    assert set(result.method("joint").more) == {"examples", "seconds"}
    views = {view.axis: view for view in budget_views(result)}
    assert views["examples"].within == ("replay", "sequential")
    assert views["bytes"].within == ("joint", "replay", "sequential")
    assert views["seconds"].beyond == ("joint", "aim")


def test_another_reference_and_none_of_that_name(records: list[CellRecord]) -> None:
    assert compare(records, "joint")[0].reference == "joint"
    with pytest.raises(InputError, match="no method 'replai'") as error:
        compare(records, "replai")
    assert "replay" in error.value.remedy
    with pytest.raises(InputError, match="no results"):
        compare([])
    other = [record.model_copy(update={"stream": "other"}) for record in records if record.method != "joint"]
    assert [each.reference for each in compare([*records, *other], "joint")] == ["joint", "replay"]


def test_cells_that_cannot_be_compared_are_named(records: list[CellRecord]) -> None:
    odd = [
        cell("aim", seed=7, stopped_by="asha", n=20),
        cell("aim", seed=8, tasks=("books", "tweets"), n=20),
        cell("aim", seed=9, tuning="share", n=20),
    ]
    result = compare([*records, *odd])[0]
    assert [found.seed for found, _ in result.left_out] == [7, 8]
    assert len(result.method("aim").cells) == 9
    assert any("1 cell was stopped by a rule" in note for note in result.notes)
    assert "Of aim, only the runs that were not stopped are compared, which favours it." in result.notes
    other = cell("aim", seed=9, n=20)
    other.examples["books"].test_sha256 = "f" * 64
    with pytest.raises(InputError, match="different test examples of 'books'"):
        compare([*records, other])


def test_variants_of_a_method_and_single_runs() -> None:
    cells = [cell("replay", options={"share": share}, level=0.6 + share, n=50) for share in (0.05, 0.1)]
    result = compare([*cells, cell("sequential", n=50)], "sequential")[0]
    assert {method.label for method in result.methods} == {"replay (share=0.05)", "replay (share=0.1)", "sequential"}
    assert all(
        method.difference.verdict == "cannot be told apart"
        for method in result.methods
        if method.difference is not None
    )
    assert "takes two runs" in StudyTable([result]).text()
    dotted = [cell("aim", options={"method.alpha": alpha}, n=20) for alpha in (0.1, 0.2)]
    assert set(method_labels(dotted).values()) == {"aim (alpha=0.1)", "aim (alpha=0.2)"}


def test_joint_training_that_has_one_run_for_all_orders_counts_once() -> None:
    def cells(seeds: int) -> list[CellRecord]:
        joint = [cell("joint", seed=seed, level=0.8, n=20) for seed in range(seeds)]
        shared = [each.model_copy(update={"name": f"{each.name}-{o}", "order": o}) for each in joint for o in "123"]
        return [*study({"replay": 0.6, "aim": 0.7}, seeds=seeds, n=20), *shared]

    one, three = compare(cells(1))[0], compare(cells(3))[0]
    assert (one.method("joint").op.runs, one.method("joint").op.low) == (1, None)
    assert (three.method("joint").op.runs, three.method("replay").op.runs) == (3, 9)
    assert list(three.method("joint").by_order) == ["1", "2", "3"]
    alone, aim = one.method("joint").difference, one.method("aim").difference
    assert alone is not None
    assert aim is not None
    assert (alone.verdict, alone.p, alone.orders) == ("cannot be told apart", None, 3)
    assert aim.p == aim.estimate.p  # of one method that can be tested
    told = compare(cells(3), "joint")[0].method("replay").difference
    assert told is not None
    assert told.verdict == "worse"


def test_tables_say_the_same_in_every_format(table: StudyTable, records: list[CellRecord], tmp_path: Path) -> None:
    text = " ".join(table.text(200).split())
    for said in ("cannot be", "told apart", "reference", "aim†", "(2.2×)", "† costs more than replay"):
        assert said in text
    assert max(map(len, table.text(80).split("\n\n", maxsplit=1)[0].splitlines())) <= 80
    assert "| aim† | 9 |" in table.markdown()
    latex = table.latex()
    assert latex.count(r"\toprule") == 1
    assert r"aim\textsuperscript{\dag} & 9 &" in latex
    assert r"95 \% interval" in latex
    lines = list(csv.DictReader(io.StringIO(table.csv())))
    assert [line["method"] for line in lines] == ["joint", "aim", "replay", "sequential"]
    assert float(lines[0]["op"]) == table.results[0].methods[0].op.mean
    assert lines[1]["costs_more"] == "examples seconds bytes"
    written = {path.name for path in write_tables(records, tmp_path, table)}
    assert written == {"study.md", "study.tex", "study.csv", "cells.csv"}
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 37


def test_plus_minus_is_the_largest_standard_error_and_says_so() -> None:
    """Two orders that differ: over orders it is larger than over the six runs."""
    cells = [cell("replay", order, seed, level=0.5 + 0.1 * int(order), n=50) for order in "12" for seed in range(3)]
    by_order = [statistics.mean(c.op or 0.0 for c in cells if c.order == order) for order in "12"]
    over_orders = statistics.stdev(by_order) / 2**0.5
    assert over_orders > 1.5 * statistics.stdev(c.op or 0.0 for c in cells) / 6**0.5
    text = StudyTable(compare(cells)).markdown()
    assert f" ± {100 * over_orders:.1f} |" in text
    assert "± is one standard error of the mean: the largest of those over runs, over orders and over seeds" in text


def test_names_are_shown_as_they_are() -> None:
    table = StudyTable(compare([cell("a_b & 50%", n=20), cell("=1+1", n=20)]))
    assert r"a\_b \& 50\%" in table.latex()
    assert r"a\_b &amp; 50%" in table.markdown()
    assert ",'=1+1," in table.csv()


def test_orders_are_sorted_as_people_count() -> None:
    orders = ("order-10", "order-2", "order-1", "b", "a")
    turned = zip(orders, itertools.permutations(TASKS), strict=False)
    (result,) = compare([cell("aim", order=order, tasks=tasks, n=10) for order, tasks in turned])
    assert result.orders == ("a", "b", "order-1", "order-2", "order-10")
    assert [each.order for each in result.methods[0].cells] == list(result.orders)


def test_equal_orders_count_as_one_whatever_they_are_called() -> None:
    one = study({"replay": 0.6, "aim": 0.7}, orders=("first", "1"), seeds=3, n=20)  # of the same tasks
    one = [record.model_copy(update={"seed": record.seed + 3 * (record.order == "1")}) for record in one]
    (result,) = compare(one)
    difference = result.method("aim").difference
    assert difference is not None
    assert (result.orders, difference.orders, difference.estimate.runs) == (("1",), 1, 6)


def test_an_order_is_its_tasks_or_the_order_of_the_classes_that_are_split() -> None:
    listed = {"folder": "data", "order": ["a", "b", "c"]}
    whole = arrangement(["a", "b", "c"], listed)
    assert arrangement(["a", "b"], listed) == whole  # stopped after two
    assert arrangement(["a", "b", "c"], {"tasks": [{"name": name} for name in "abc"]}) == whole
    assert arrangement(["a", "b", "c"], {}) == whole
    assert arrangement(["b", "a", "c"], {}) != whole
    split = [{"split": {"classes_per_task": 2, "order_seed": seed}} for seed in (1, 2, 1)]
    seeds = [arrangement(["classes-01", "classes-02"], stream) for stream in split]
    assert seeds[0] == seeds[2] != seeds[1]


def test_two_orders_that_two_people_have_called_alike_are_two() -> None:
    ann, bob = ("s", "order-1", "abc", "ann"), ("s", "order-1", "cba", "bob")
    joint = ("s", "order-1", None, "bob")  # its run does not tell
    orders = [RecordedOrder(*each) for each in (ann, ann, bob, joint, ("s", "mine", "abc", "cid"))]
    names = names_of_orders(orders)
    assert names == ["order-1", "order-1", "order-1 (2)", "order-1 (2)", "order-1"]
    again = [replace(order, name=name, place=None) for order, name in zip(orders, names, strict=True)]
    assert names_of_orders(again) == names
    assert names_of_orders(orders[::-1]) == names[::-1]


def test_orders_of_a_split_data_set_have_other_examples_in_their_tasks() -> None:
    """Their scores are paired within an order; the texts of all orders are the same, so they count once."""

    def split(seed: int, record: CellRecord) -> CellRecord:
        configuration = {**record.configuration, "stream": {"split": {"classes_per_task": 4, "order_seed": seed}}}
        examples = {
            task: kept.model_copy(update={"test_sha256": f"{seed}{kept.test_sha256[1:]}"})
            for task, kept in record.examples.items()
        }
        return record.model_copy(update={"configuration": configuration, "examples": examples})

    whole = study({"replay": 0.6, "aim": 0.7}, seeds=4)
    apart = [split(int(record.order), record) for record in whole]
    difference, same = (compare(cells)[0].method("aim").difference for cells in (apart, whole))
    assert difference is not None
    assert same is not None
    assert difference.estimate.mean == same.estimate.mean
    assert difference.examples == same.examples
    assert difference.estimate.stderr is not None
    assert same.estimate.stderr is not None
    assert difference.estimate.stderr >= same.estimate.stderr * 0.95  # not less, for being three times as many
    wrong = split(2, apart[0].model_copy(update={"seed": 9})).model_copy(update={"examples": apart[0].examples})
    with pytest.raises(InputError, match="different test examples"):
        compare([*apart, wrong])
