"""Running a study on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

import merganser
from merganser.config import check_config
from merganser.errors import InputError
from merganser.files.atomic import flush
from merganser.learner import Learner
from merganser.runs import read_run
from merganser.study.cell_record import read_cells
from merganser.study.cells import Cell, load_study
from merganser.study.early_stop import EarlyStop
from merganser.study.folder import StudyFolder
from merganser.study.local import Progress, find_machine
from merganser.study.orders import Data
from merganser.study.run_cell import run_cell
from merganser.study.study import Outcome, Work, find_work, outcome, study
from tests.learner import toys
from tests.study.conftest import write_study

Run = Callable[..., Outcome]


def change(file: Path, **changes: object) -> Path:
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return file


def test_every_cell_is_a_run_with_a_record(finished: Path) -> None:
    records = read_cells(finished / "out" / "records")
    assert [record.name for record in records] == sorted(
        [f"{method},order-{order},s0" for method in ("sequential", "replay", "joint") for order in (1, 2)]
    )
    runs = sorted(path.name for path in (finished / "out" / "cells").iterdir())
    assert runs == sorted({record.name for record in records} - {"joint,order-2,s0"})
    replay = next(record for record in records if record.name == "replay,order-2,s0")
    assert replay.tasks == ["topic", "mood"]
    assert replay.cost.processor_seconds is not None
    assert replay.examples.keys() == {"mood", "topic"}
    assert [record.run for record in records if record.method == "joint"] == ["cells/joint,order-1,s0"] * 2
    assert not list((finished / "out" / "logs").iterdir())


def test_a_cell_with_shared_parts_is_the_run_without_them_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    read = load_study(finished / "study.yaml")
    cell = read.find("replay,order-1,s0")
    with Learner.of_config(tmp_path / "alone", cell.config) as learner:
        learner.learn_stream(Data(finished).tasks(cell.stream))
    together = toys.results(finished / "out" / "cells" / cell.name)
    alone = toys.results(tmp_path / "alone")
    assert alone.keys() == together.keys()
    assert [name for name, content in alone.items() if together[name] != content] == []
    answers = [(folder / "tasks/00-start/answers.jsonl").read_bytes() for folder in (tmp_path / "alone",)]
    assert answers == [(finished / "out/cells" / cell.name / "tasks/00-start/answers.jsonl").read_bytes()]


def test_equal_parts_are_made_once(finished: Path) -> None:
    shared = finished / "out" / "shared"
    # Of each order: the first task, by sequential and replay; joint training is one more.
    assert len(list((shared / "training").iterdir())) == 3
    costs = [
        [task.cost.examples_trained for task in read_run(finished / "out" / "cells" / name).tasks]
        for name in ("sequential,order-1,s0", "replay,order-1,s0")
    ]
    assert costs[0] == costs[1] == [8, 8]


def test_a_later_cell_tokenises_and_embeds_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = load_study(finished / "study.yaml").find("replay,order-1,s0")
    for place in (
        "transformers.PreTrainedTokenizerFast.__call__",
        "merganser.models.matcher.Matcher._embed_pretrained",
    ):
        monkeypatch.setattr(place, lambda *given, **options: pytest.fail("made again"))
    with Learner.of_config(tmp_path / "later", cell.config, shared=finished / "out" / "shared") as learner:
        learner.learn_stream(Data(finished).tasks(cell.stream))
        assert learner.session.shared is not None
        assert learner.session.shared.saved_seconds > 0
    assert toys.results(tmp_path / "later") == toys.results(finished / "out" / "cells" / cell.name)


def test_what_is_done_is_not_run_again_and_added_cells_are(copied: Path, run_study: Run) -> None:
    before = toys.contents(copied / "out" / "cells")
    file = change(copied / "study.yaml", methods=["sequential", "replay", "joint", "ewc"], orders=[["mood", "topic"]])
    result = run_study(file, copied / "out")
    assert result.complete
    assert len(result.done) == 4
    after = toys.contents(copied / "out" / "cells")
    assert {name: after[name] for name in before} == before
    assert any(name.startswith("ewc") for name in after)


def test_changed_cells_are_named_and_left_alone(copied: Path, run_study: Run) -> None:
    before = toys.contents(copied / "out" / "cells")
    values = yaml.safe_load((copied / "study.yaml").read_text())
    methods = {"sequential": None, "replay": {"memory": {"number": 2}}, "joint": None}
    result = run_study(change(copied / "study.yaml", methods=methods), copied / "out")
    assert result.changed == dict.fromkeys(
        ["replay,order-1,s0", "replay,order-2,s0"], "memory.number: 4 in the run, 2 requested"
    )
    assert not result.complete
    assert toys.contents(copied / "out" / "cells") == before
    orders = values["orders"][::-1]
    result = run_study(change(copied / "study.yaml", methods=["sequential", "joint"], orders=orders), copied / "out")
    assert list(result.changed) == ["sequential,order-1,s0", "joint,order-1,s0", "sequential,order-2,s0"]


def test_records_of_a_run_for_all_orders_are_changed_with_it(copied: Path, run_study: Run) -> None:
    values = yaml.safe_load((copied / "study.yaml").read_text())
    training = {**values["training"], "steps": 3}
    file = change(copied / "study.yaml", methods={"joint": {"training": training}})
    names = ["joint,order-1,s0", "joint,order-2,s0"]
    assert list(run_study(file, copied / "out").changed) == names
    folder, other = StudyFolder(copied / "out"), copied / "out" / "records" / f"{names[1]}.json"
    before = other.read_bytes()
    assert [path.name for name in names for path in folder.kept(name)] == [names[0], f"{names[0]}.json", other.name]
    for number, path in enumerate(folder.kept(names[0])):
        path.rename(copied / str(number))
    assert list(run_study(file, copied / "out").changed) == names[1:]
    assert other.read_bytes() == before
    other.rename(copied / "other")
    assert run_study(file, copied / "out").complete


def test_a_run_made_by_hand_is_continued_or_named(copied: Path, run_study: Run) -> None:
    for method in ("replay", "sequential"):
        name = f"{method},order-1,s0"
        cell = load_study(copied / "study.yaml").find(name)
        shutil.rmtree(copied / "out" / "cells" / name)
        (copied / "out" / "records" / f"{name}.json").unlink()
        changes = {"seed": 3} if method == "sequential" else {}
        config = check_config({**cell.config.model_dump(mode="json"), **changes}, "here")
        with Learner.of_config(copied / "out" / "cells" / name, config, command="python mine.py") as learner:
            learner.learn(Data(copied).tasks(cell.stream)[0])
    result = run_study(copied / "study.yaml", copied / "out")
    assert result.changed == {
        "sequential,order-1,s0": "it was made by hand (`python mine.py`); seed: 3 in the run, 0 requested"
    }
    assert "replay,order-1,s0" in result.done
    assert read_run(copied / "out/cells/replay,order-1,s0").info.command == "python mine.py"
    assert len(read_run(copied / "out/cells/sequential,order-1,s0").tasks) == 1


def test_a_failed_cell_is_reported_and_the_others_go_on(tmp_path: Path, run_study: Run) -> None:
    methods = {"wild": {"method": "sequential", "training": {"learning_rate": 1e30}}, "replay": None}
    file = write_study(tmp_path, methods=methods)
    result = run_study(file, tmp_path / "out")
    assert list(result.failed) == ["wild,s0"]
    assert "Try a lower training.learning_rate" in result.failed["wild,s0"]
    assert result.done == ["replay,s0"]
    assert "Traceback" in (tmp_path / "out" / "logs" / "wild,s0.log").read_text()
    assert not result.complete


class Killer:
    """Sends a signal to the process of the cell when its second task begins, or stops the study."""

    def __init__(self, folder: Path, signal_number: int | None) -> None:
        self.folder = folder
        self.signal = signal_number
        self.sent = False

    def __call__(self, study: object, work: Work, machine: object, progress: Progress) -> None:
        progress.tick = self.tick

    def tick(self, progress: Progress) -> None:
        for name in progress.fractions:
            if self.sent or not list(self.folder.glob(f"cells/{name}/checkpoint/02-step-*/checkpoint.json")):
                continue
            self.sent = True
            if self.signal is None:
                raise KeyboardInterrupt
            holder = (self.folder / "cells" / name / ".lock").read_text()
            os.kill(int(holder), self.signal)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study of one cell that is interrupted, and the run of the cell without any study."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    training = {**toys.settings()["training"], "steps": 60, "checkpoint_steps": 4}
    file = write_study(folder, methods=["replay"], orders=[["mood", "topic"]], training=training)
    cell = load_study(file).find("replay,order-1,s0")
    with Learner.of_config(folder / "alone", cell.config) as learner:
        learner.learn_stream(Data(folder).tasks(cell.stream))
    return folder


@pytest.mark.parametrize("number", [None, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_an_interrupted_study_goes_on_bit_for_bit(
    number: int | None, tmp_path: Path, uninterrupted: Path, run_study: Run
) -> None:
    file = uninterrupted / "study.yaml"
    killer = Killer(tmp_path / "out", number)
    if number is None:
        with pytest.raises(KeyboardInterrupt):
            run_study(file, tmp_path / "out", watch=killer)
    else:
        result = run_study(file, tmp_path / "out", watch=killer)
        reason = "its process was ended by signal 9 (9: often for lack of memory)"
        assert result.failed == {"replay,order-1,s0": reason}
    assert killer.sent
    run = tmp_path / "out" / "cells" / "replay,order-1,s0"
    assert len(read_run(run).tasks) == 1
    assert list(run.glob("checkpoint/02-step-*"))
    assert run_study(file, tmp_path / "out").complete
    assert toys.results(run) == toys.results(uninterrupted / "alone")


def test_two_studies_in_one_folder_are_refused(copied: Path, tmp_path: Path, run_study: Run) -> None:
    before = toys.contents(copied / "out")
    other = write_study(tmp_path / "other", methods=["ewc"])
    with pytest.raises(
        InputError, match=r"holds another study \('study', with cells such as 'sequential,order-1,s0'\)"
    ):
        run_study(other, copied / "out")
    with StudyFolder(copied / "out").lock(), pytest.raises(InputError, match="Another process runs the study in"):
        run_study(copied / "study.yaml", copied / "out")
    with pytest.raises(InputError, match="exists and is not a study"):
        run_study(other, copied)
    with pytest.raises(InputError, match="is the directory of a run"):
        run_study(other, copied / "out/cells/replay,order-1,s0")
    assert toys.contents(copied / "out") == before


def test_slices_may_begin_a_study_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, folder = load_study(write_study(tmp_path)), StudyFolder(tmp_path / "out")
    meanwhile = [lambda: StudyFolder(tmp_path / "out").begin(read, 1)]

    def flush_beside_another(path: Path) -> None:
        if path.suffix == ".partial" and meanwhile:
            meanwhile.pop()()
        flush(path)

    monkeypatch.setattr("merganser.files.atomic.flush", flush_beside_another)
    assert folder.begin(read, 1) == 1
    assert folder.study().cells == read.cells


def test_changed_data_are_refused_before_any_work(copied: Path, run_study: Run) -> None:
    before = toys.contents(copied / "out")
    file = change(copied / "study.yaml", development=0.25, methods=["sequential", "ewc"])
    with pytest.raises(InputError, match=r"The data of '\w+' have changed since the study"):
        run_study(file, copied / "out")
    toys.write_rows(copied / "topic.json", toys.rows("topic", 12, seed=7))
    with pytest.raises(InputError, match="The data of 'topic' have changed"):
        run_study(change(file, development=None), copied / "out")
    assert toys.contents(copied / "out") == before


def test_references_asked_for_later_are_measured(copied: Path) -> None:
    folder = StudyFolder(copied / "out")
    for fwt in (False, True):
        read = load_study(change(copied / "study.yaml", fwt=fwt))
        work = find_work(read, folder, read.runs, resume_stopped=True)
        assert list(work.cells) == (read.runs if fwt else [])


def test_what_other_cells_are_is_no_matter_of_one_that_is_run_alone(copied: Path) -> None:
    read = load_study(change(copied / "study.yaml", methods={"sequential": None, "replay": {"memory": {"number": 2}}}))
    one, other = read.find("sequential,order-1,s0"), read.find("replay,order-1,s0")
    found = [dict(outcome(read, StudyFolder(copied / "out"), [cell], {}).changed) for cell in (one, other)]
    assert [list(changed) for changed in found] == [[], [other.name]]


def test_cells_are_stopped_by_runs_of_the_study_alone(copied: Path) -> None:
    file, folder = copied / "study.yaml", StudyFolder(copied / "out")

    def reason(file: Path) -> str | None:
        read = load_study(file)
        rule = EarlyStop(read, folder, 1)
        return rule.reason(read.find("sequential,order-1,s0"), ["mood", "topic"], {"mood": 0.0, "topic": 0.0})

    assert "replay,order-1,s0 had" in str(reason(file))
    row = copied / "out/cells/replay,order-1,s0/tasks/02-topic/row.json"
    whole = row.read_bytes()
    row.write_bytes(whole[:-20])
    assert reason(file) is None
    row.write_bytes(whole)
    assert reason(change(file, methods={"sequential": None, "replay": {"memory": {"number": 2}}})) is None
    with pytest.raises(InputError, match="cells of one process"):
        reason(change(file, processes=2))


def test_what_is_wrong_with_data_or_model_is_said_before_any_work(tmp_path: Path, run_study: Run) -> None:
    file = write_study(tmp_path)
    (tmp_path / "topic.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match=r"topic\.json"):
        run_study(file, tmp_path / "out")
    (tmp_path / "elsewhere.json").rename(tmp_path / "topic.json")
    change(file, model={"name": "./absent", "kind": "matcher"})
    with pytest.raises(InputError, match=r"The model \./absent does not exist"):
        run_study(file, tmp_path / "out")
    with pytest.raises(InputError, match="more than the 2 cores"):
        run_study(file, tmp_path / "out", parallel=2, threads=2)
    assert not (tmp_path / "out").exists()


def test_a_list_of_classes_that_a_seed_draws_as_well_is_no_second_order(tmp_path: Path, run_study: Run) -> None:
    split = {
        "train": "mood.json",
        "test": "mood-test.json",
        "classes_per_task": 1,
        "input": "input",
        "output": "output",
    }
    orders = {"listed": ["good", "bad"], "turned": ["bad", "good"], "drawn": 0}
    file = write_study(tmp_path, stream={"split": split}, orders=orders)
    with pytest.raises(InputError, match=r"orders: '(listed|turned)' and 'drawn' are the same order"):
        run_study(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_threads_are_never_more_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merganser.study.local.num_cores", lambda: 8)
    for count, cells, threads, devices, expected in [
        (20, None, None, (), (8, 1)),
        (3, None, None, (), (3, 2)),
        (20, None, 2, (), (4, 2)),
        (20, 2, None, (), (2, 4)),
        (20, None, None, ("0", "1"), (2, 4)),
        (20, 4, 1, ("0", "1"), (4, 1)),
        (20, None, 4, tuple("0123"), (2, 4)),
        (20, None, None, tuple("0123456789"), (8, 1)),
    ]:
        machine = find_machine(count, cells, threads, devices)
        assert (machine.cells, machine.threads) == expected


def test_cells_stopped_by_a_rule_are_marked_and_can_be_finished(copied: Path, run_study: Run) -> None:
    file = change(
        copied / "study.yaml",
        methods={"sequential": None, "bad": {"method": "sequential", "training": {"learning_rate": 1e-9}}},
        orders=[["mood", "topic"]],
    )
    values = yaml.safe_load(file.read_text())
    values["stream"]["tasks"].append({"name": "truth", "train": "truth.json", "test": "truth-test.json"})
    shutil.rmtree(copied / "out")
    file = change(file, stream=values["stream"], orders=[["mood", "topic", "truth"]])
    file = change(file, training={**values["training"], "steps": 8})
    result = run_study(file, copied / "out", early_stop=1)
    (record,) = [each for each in result.records if each.stopped_by]
    assert result.stopped == {record.name: record.stopped_by}
    assert "early-stop 1: " in str(record.stopped_by)
    assert len(record.tasks) == 2
    assert run_study(file, copied / "out").stopped == {}
    assert {len(each.tasks) for each in read_cells(copied / "out" / "records")} == {3}


def test_a_cell_that_is_complete_is_not_stopped(finished: Path, tmp_path: Path) -> None:
    read, asked = load_study(finished / "study.yaml"), []

    class Rule(EarlyStop):
        def reason(self, cell: Cell, learned: Sequence[str], scores: Mapping[str, float]) -> str | None:
            asked.append(list(learned))
            return "it is worse" if learned == ["topic"] else None

    folder, cell = StudyFolder(tmp_path / "out"), read.find("replay,order-1,s0")
    run_cell(read, cell, folder, Data(finished), early_stop=Rule(read, folder, 1))
    assert asked == [["mood"]]
    assert folder.status(cell).stage == "done"


def test_from_python(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load((finished / "study.yaml").read_text())
    monkeypatch.chdir(finished)
    result = merganser.study(values, "out", parallel=1)
    assert result.complete
    assert len(result.records) == 6
    assert study(finished / "study.yaml", finished / "out").complete
    state = json.loads((finished / "out" / "study.json").read_text())
    assert state["threads"] == 1  # as at its beginning, although one cell at a time might have two
