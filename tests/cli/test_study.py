"""``merganser study``: its options, what it prints, its exit codes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from merganser.learner import Learner
from merganser.runs import read_run
from merganser.study.cells import load_study
from tests.learner import toys
from tests.learner.toys import Command
from tests.study.conftest import ForkedServer, write_study


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merganser.study.local.Popen", ForkedServer)
    monkeypatch.setattr("merganser.study.local.num_cores", lambda: 2)


def test_slices_and_cells_are_run_alone_and_add_up_to_the_study(
    tmp_path: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path("out/study.html")
    monkeypatch.setattr("merganser.study.published.StudyResults.publish", lambda results: page)
    file = write_study(tmp_path, methods=["sequential", "replay", "ewc"])
    printed = merganser("study", file, "--out", "out", "--print").out.splitlines()
    assert [shlex.split(line) for line in printed] == [
        ["merganser", "study", str(file), "--out", "out", "--cell", f"{method},s0"]
        for method in ("sequential", "replay", "ewc")
    ]
    done = merganser("study", file, "--out", "out", "--only", "1/3", "--parallel", "1")
    assert (done.code, "sequential,s0: done" in done.err, "left alone" in done.err) == (0, True, False)
    assert sorted(path.name for path in Path("out/cells").iterdir()) == ["sequential,s0"]
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    assert merganser(*shlex.split(printed[1])[1:]).code == 0
    assert threads[0] == 2  # as the study was begun with
    done = merganser("study", file, "--out", "out", "--parallel", "1")
    assert "1 cell to run" in done.err
    assert "3 cells of the study are done." in done.err
    assert "Nothing was left to run" in merganser("study", file, "--out", "out").err
    done = merganser("study", "out", "--table")
    assert done.code == 0
    assert "3 of 3 cells of the study are done." in done.out
    assert "Differences to replay" in done.out
    assert "Wrote out/study.html" in done.out
    assert "There is no folder" in merganser("study", tmp_path / "x", "--table").error


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path: Path, merganser: Command) -> None:
    file = write_study(tmp_path, methods=["sequential"])
    cell = load_study(file).cells[0]
    with Learner.of_config(Path("out/cells/sequential,s0"), cell.config):
        done = merganser("study", file, "--out", "out")
    assert (done.code, "1 cell is run by another process." in done.err) == (0, True)
    assert merganser("study", file, "--out", "out").code == 0
    assert len(read_run("out/cells/sequential,s0").tasks) == 2


def test_failed_and_changed_cells_make_the_exit_code_1(tmp_path: Path, merganser: Command) -> None:
    wild = {"method": "sequential", "training": {"learning_rate": 1e30}}
    file = write_study(tmp_path, methods={"wild": wild, "sequential": None})
    done = merganser("study", file, "--out", "out", "--parallel", "1")
    assert done.code == 1
    assert "wild,s0: FAILED: The training loss of task" in done.err
    assert "1 cell of the study is done." in done.err
    write_study(tmp_path, methods=["sequential"], training={**toys.settings()["training"], "steps": 3})
    done = merganser("study", file, "--out", "out")
    assert done.code == 1
    assert "'sequential,s0' is not what the study has now: training.steps: 2 in the run, 3 requested." in done.err


def test_a_changed_cell_is_run_anew_when_what_is_named_was_moved(
    tmp_path: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path("out/study.html")
    monkeypatch.setattr("merganser.study.published.StudyResults.publish", lambda results: page)
    file = write_study(tmp_path, methods=["sequential", "replay"])
    assert merganser("study", file, "--out", "out", "--parallel", "1").code == 0
    write_study(tmp_path, methods={"sequential": {"training": {"steps": 3}}, "replay": None})
    table = merganser("study", "out", "--table").out
    assert "2 of 2 cells of the study are done." in table  # as it was when it was run
    run, record = Path("out/cells/sequential,s0"), Path("out/records/sequential,s0.json")
    old = record.read_bytes()
    for named in (f"{run} and {record}", str(record)):
        done = merganser("study", file, "--out", "out")
        assert (done.code, f"To run it anew, move {named} elsewhere" in done.err) == (1, True), done.err
        assert record.read_bytes() == old  # it may be the only trace of the run
        if run.exists():
            run.rename("moved")
    table = merganser("study", "out", "--table").out
    assert "1 of 2 cells of the study are done." in table
    assert "Left out, since the study has them otherwise now: sequential,s0." in table
    record.rename("moved.json")
    done = merganser("study", file, "--out", "out")
    assert (done.code, "sequential,s0: done" in done.err) == (0, True), done.err
    assert record.read_bytes() != old
    # A record alone, such as that of another person, is as good as its run.
    run.rename("moved too")
    assert "Nothing was left to run" in merganser("study", file, "--out", "out").err
    plan = merganser("study", file, "--out", "out", "--plan").out
    assert ("2 of them done; 0 runs to make." in plan, "estimated" in plan) == (True, False)


def test_cells_stopped_by_a_rule_are_not_called_done(
    tmp_path: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path("out/study.html")
    monkeypatch.setattr("merganser.study.published.StudyResults.publish", lambda results: page)
    monkeypatch.setattr("merganser.study.early_stop.EarlyStop.reason", lambda rule, cell, *_: WORSE.get(cell.name))
    file = write_study(tmp_path, methods={"sequential": None, "bad": {"method": "sequential"}}, seeds=2)
    done = merganser("study", file, "--out", "out", "--parallel", "1", "--early-stop", "5")
    assert done.code == 0
    assert "] bad,s1: stopped by a rule after " in done.err
    assert "] bad,s0: done in " in done.err
    assert "Stopped: 'bad,s1': it is worse" in done.err
    assert "3 cells of the study are done." in done.err
    table = " ".join(merganser("study", "out", "--table").out.split())
    assert "3 of 4 cells of the study are done, 1 stopped by a rule." in table
    assert "Of bad, only the runs that were not stopped are compared, which favours it." in table


WORSE = {"bad,s1": "it is worse"}


def test_a_plan_tells_cells_shared_parts_time_and_bytes_and_writes_nothing(tmp_path: Path, merganser: Command) -> None:
    file = write_study(
        tmp_path, methods=["sequential", "replay"], orders=[["mood", "topic"], ["topic", "mood"]], seeds=2
    )
    before = toys.contents(tmp_path)
    done = merganser("study", file, "--out", "out", "--plan")
    assert done.code == 0
    assert "8 cells; 8 runs to make." in done.out
    assert "Shared: 4 first tasks trained once for 8 cells" in done.out  # of two orders and two seeds
    assert "hours of one cell after another" in done.out
    assert "on disk" in done.out
    assert toys.contents(tmp_path) == before
    file = write_study(tmp_path, model={"name": "nobody/nothing", "kind": "matcher"})
    done = merganser("study", file, "--plan")
    assert (done.code, "Not measured: " in done.out) == (0, True)
    assert "not estimated" in done.out
    assert "hours" not in done.out


def test_wrong_arguments_are_one_error(tmp_path: Path, merganser: Command) -> None:
    file = write_study(tmp_path)
    many = write_study(tmp_path / "many", seeds=5000)
    for arguments, message in [
        ([file], "There is no folder for the study. Name one: --out DIR."),
        ([file, "--out", "out", "--only", "3/2"], "--only is '3/2'."),
        ([file, "--out", "out", "--cell", "sequental,s0"], "no cell 'sequental,s0'. Did you mean 'sequential,s0'?"),
        ([file, "--out", "out", "--print", "--table"], "--print and --table were both given."),
        ([file, "--out", "out", "--early-stop", "0"], "--early-stop is 0 points."),
        ([file, "--print", "--early-stop", "0"], "--early-stop is 0 points."),
        ([file, "--out", "out", "--cell", "sequential,s0", "--ray", "auto"], "--cell and --ray were both given."),
        ([file, "--out", "out", "--reference", "replay"], "--reference is for --table."),
        ([many, "--out", "out"], "the study has 10,000 cells."),
    ]:
        done = merganser("study", *arguments)
        assert (done.code, message in done.error) == (2, True), done.err
    assert not (tmp_path / "out").exists()
    assert len(load_study(many, allow_many=True).cells) == 10_000
