"""From a study's file to its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.study.cells import Study, TooManyCells, load_study, make_study


def values(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"name": "owner/model", "kind": "matcher"},
        "stream": {"folder": "data", "order": ["a", "b", "c"]},
        "training": {"batch": 8},
        "methods": ["sequential", "replay"],
    } | changes


def made(**changes: Any) -> Study:
    return make_study(values(**changes), "study.yaml", Path("/nowhere"))


def names(**changes: Any) -> list[str]:
    return [cell.name for cell in made(**changes).cells]


def test_methods_grids_orders_and_seeds_are_combined() -> None:
    study = made(
        methods={
            "sequential": None,
            "tuned": {
                "method": "replay",
                "training": {"epochs": 2},
                "grid": {"method": {"batch": [2, 4]}, "memory": {"share": [0.02, 0.1]}},
            },
        },
        orders=[["a", "b", "c"], 7],
        seeds=2,
    )
    assert len(study.cells) == 2 * 2 + 4 * 2 * 2
    cell = study.find("tuned,batch=4,share=0.1,order-1,s1")
    assert cell.options == {"method.batch": 4, "memory.share": 0.1}
    config = cell.config
    assert (config.method.name, config.training.batch, config.training.epochs, config.seed) == ("replay", 8, 2, 1)
    assert config.memory.share == 0.1
    shuffled = study.find("sequential,shuffle-7,s0").config.stream
    assert shuffled is not None
    assert sorted(shuffled.order or []) == ["a", "b", "c"]


def test_a_grid_for_all_methods_takes_its_method_options_to_those_that_have_them() -> None:
    grid = {"method": {"batch": [2, 4]}, "training": {"learning_rate": [0.001, 0.0005]}}
    found = names(grid=grid)
    assert found == [
        "sequential,learning_rate=0.001,s0",
        "sequential,learning_rate=0.0005,s0",
        *(f"replay,batch={batch},learning_rate={rate},s0" for batch in (2, 4) for rate in (0.001, 0.0005)),
    ]


def test_a_grid_for_all_methods_takes_the_memory_to_those_that_have_one() -> None:
    found = names(methods=["sequential", "joint", "replay"], grid={"memory": {"number": [2, 4]}})
    assert found == ["sequential,s0", "joint,s0", "replay,number=2,s0", "replay,number=4,s0"]


def test_names_stay_the_same_when_a_study_grows() -> None:
    small = names(orders={"one": ["a", "b", "c"]})
    large = names(orders={"two": ["c", "b", "a"], "one": ["a", "b", "c"]}, seeds=[5, 0], methods=["ewc", "replay"])
    assert "replay,one,s0" in set(small) & set(large)


def test_names_can_be_those_of_folders() -> None:
    found = names(
        methods={"Übung / 1": {"method": "sequential"}, "Übung : 1": {"method": "sequential"}},
        grid={"model": {"lora": [None, {"r": 4}, {"r": 8}]}},
    )
    assert len(set(found)) == 6
    assert all("/" not in name and name.isascii() and len(name) <= 120 for name in found)


def test_joint_training_has_one_run_for_all_orders() -> None:
    study = made(methods=["joint"], orders=[["a", "b", "c"], ["c", "b", "a"]], seeds=2)
    assert [(cell.name, cell.run) for cell in study.cells] == [
        ("joint,order-1,s0", "joint,order-1,s0"),
        ("joint,order-1,s1", "joint,order-1,s1"),
        ("joint,order-2,s0", "joint,order-1,s0"),
        ("joint,order-2,s1", "joint,order-1,s1"),
    ]
    assert len(study.runs) == 2


def test_several_streams_and_built_in_orders() -> None:
    streams = {
        "long": {"name": "long-sequence-1", "folder": "ls"},
        "super": {"name": "long-sequence-2", "folder": "ls"},
    }
    study = make_study(
        {k: v for k, v in values(streams=streams).items() if k != "stream"}
        | {"orders": ["long-sequence-2"], "methods": ["aim"]},
        "study.yaml",
        Path("/nowhere"),
    )
    assert [cell.name for cell in study.cells] == ["long,aim,long-sequence-2,s0", "super,aim,long-sequence-2,s0"]


def test_slices_are_all_runs_once() -> None:
    study = made(methods=["sequential", "joint", "ewc"], orders=[["a", "b", "c"], ["c", "b", "a"]], seeds=3)
    slices = [study.only(part, 4) for part in range(1, 5)]
    assert sorted(cell.name for each in slices for cell in each) == sorted(cell.name for cell in study.runs)
    assert {len(each) for each in slices} == {3, 4}


WRONG = [
    ({"traning": {}}, "study.yaml: traning: unknown key. Did you mean 'training'?"),
    ({"training": {"bacth": 8}}, "training.bacth: unknown key. Did you mean 'batch'?"),
    ({"methods": ["replya"]}, "there is no method 'replya'. Did you mean 'replay'?"),
    ({"methods": {"replay": {"grid": {"method": {"bacth": [2]}}}}}, "method.bacth: unknown key. Did you mean 'batch'?"),
    ({"grid": {"method": {"bacth": [2]}}}, "no method of the study has the option 'bacth'. Did you mean 'batch'?"),
    (
        {"grid": {"memory": {"number": [2, 4]}}, "methods": ["ewc", "joint"]},
        "grid.memory.number: no method of the study has a memory to vary: 'ewc' has no memory, 'joint' keeps all",
    ),
    (
        {"methods": {"ewc": {"grid": {"memory": {"number": [2, 4]}}}}},
        "methods.ewc.grid.memory.number: 'ewc' has no mem",
    ),
    ({"grid": {"method": {"batch": []}}}, "grid.method.batch: the list is empty, so the grid has 0 cells."),
    ({"grid": {"method": {"batch": 4}}}, "grid.method.batch: a list of values is needed (got 4). Write [4]"),
    ({"grid": {"methods": {"batch": [4]}}}, "'methods' is no section of a run's file. Did you mean 'method'?"),
    ({"methods": {"A": "replay"}}, "methods: A is no section (got 'replay'): write A: {method: replay}."),
    (
        {"methods": {"A": {"method": "replay"}, "B": [3]}},
        "methods: B is no section (got [3]): write B: {method: METHOD}.",
    ),
    ({"methods": 3}, "methods: write a list of methods, or a section for each under its name (got 3)."),
    ({"orders": []}, "orders: there is none; leave 'orders' out to learn the tasks as the stream has them."),
    ({"orders": {}}, "orders: there is none; leave 'orders' out"),
    ({"orders": 7}, "orders: write a list of orders, or a mapping that names them (got 7)."),
    ({"methods": []}, "methods is empty: there is no cell to run"),
    ({"seeds": []}, "seeds is empty: there is no cell to run"),
    ({"seeds": 0}, "seeds is empty: there is no cell to run"),
    ({"seeds": [1, 1]}, "a seed stands twice"),
    ({"seeds": 200_000}, "200,000 seeds are too many"),
    ({"orders": [["a", "b"]]}, "orders.order-1: 'c' is missing."),
    ({"orders": [["a", "b", "d"]]}, "orders.order-1: 'd' is no task of the stream"),
    ({"orders": ["long-sequence-9"]}, "'long-sequence-9' is no built-in order for the stream 'stream'"),
    (
        {"orders": {"one": ["a", "b", "c"], "two": ["a", "b", "c"]}},
        "study.yaml: orders: 'one' and 'two' are the same order of the stream 'stream'. Keep one of them",
    ),
    ({"orders": [["a", "b", "c"], ["b", "a", "c"], ["a", "b", "c"]]}, "'order-1' and 'order-3' are the same order"),
    ({"orders": {"drawn": 7, "again": 7}}, "'drawn' and 'again' are the same order"),
    (
        {"stream": {"split": {"train": "t.csv", "classes_per_task": 2}}, "orders": {"drawn": 7, "again": 7}},
        "'drawn' and 'again' are the same order",
    ),
    ({"reference": "aim"}, "reference: 'aim' is none of the methods (sequential, replay)"),
    ({"stream": None}, "has no 'stream'"),
    (
        {"methods": {"replay": {"grid": {"memory": {"share": [2.0]}}}}},
        "study.yaml: methods.replay: memory: share 2.0 is",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        made(**changes)
    assert message in str(error.value)


def test_a_drawn_order_that_is_one_of_the_lists_is_no_second_one() -> None:
    drawn = made(orders={"drawn": 7}).cells[0].stream.names()
    with pytest.raises(InputError, match="'listed' and 'drawn' are the same order"):
        made(orders={"listed": drawn, "drawn": 7})


def test_very_many_cells_are_counted_without_being_made() -> None:
    grid = {"training": {key: list(range(1, 1001)) for key in ("batch", "steps", "accumulation")}}
    with pytest.raises(TooManyCells, match=r"the study has 2,000,000,000 cells"):
        made(grid=grid)
    half = {"training": {"batch": list(range(1, 51))}}
    assert len(names(grid=half)) == 100


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        load_study(tmp_path / "absent.yaml")
    (tmp_path / "cut.yaml").write_text("model: {name: [")
    with pytest.raises(InputError, match="is not YAML"):
        load_study(tmp_path / "cut.yaml")
