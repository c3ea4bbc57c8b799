"""``merganser reproduce``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from huggingface_hub.errors import HTTPError as TransportError

from merganser.config import RunConfig
from merganser.errors import InputError, RunError, mark_missing_model
from merganser.learner.plan import Plan
from merganser.streams.builtin import BUILTIN
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.streams.task import Task
from merganser.study.catalogue import catalogue, find_entry
from merganser.study.cell_record import write_cell
from tests.learner.toys import Command
from tests.study.conftest import write_study
from tests.study.made_up import cell, write_texts

NAME = "forever-standard-cl"


def test_the_catalogue_is_listed_and_an_entry_shown(merganser: Command) -> None:
    listed = merganser("reproduce").out
    assert "aimmerging-llama2-13b-superni" in listed
    names = [each["name"] for each in json.loads(merganser("reproduce", "--json").out)]
    assert NAME in names
    shown = merganser("reproduce", NAME).out
    assert ["forever", "OP", "72.9", "2601.03938", "[N]"] in [line.split() for line in shown.splitlines()]
    assert "[N] notes on the paper by others" in shown
    assert f"merganser reproduce {NAME} --write study.yaml --data DATA" in shown


def test_published_and_measured_stand_side_by_side(
    tmp_path: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = BUILTIN["standard-cl-1"].tasks
    for seed in range(3):
        write_cell(tmp_path / "records", cell("forever", seed=seed, tasks=tasks))
    monkeypatch.setenv("COLUMNS", "80")
    lines = merganser("reproduce", NAME, "--results", tmp_path).out.splitlines()
    rows = {tuple(line.split()[:2]): line.split() for line in lines if len(line.split()) > 4}
    number = rows["forever", "OP"]
    assert number[2:5] == ["72.9", "2601.03938", "[N]"]
    assert (60 < float(number[5]) < 80, number[7], number[9]) == (True, "to", "3")
    assert float(number[6]) < float(number[5]) < float(number[8])
    assert rows["olora", "OP"][5:] == rows["SAPT", "OP"][5:] == ["not", "run"]
    assert "No such method here: SAPT, SSR." in lines
    assert any("Runs made otherwise than the study of this table" in line for line in lines)
    value = json.loads(merganser("reproduce", NAME, "--results", tmp_path, "--json").out)
    measured = {(each["method"], each["figure"]): each["measured"] for each in value["comparison"]}
    assert measured["forever", "op"]["runs"] == 3
    assert measured["olora", "op"] is None


def test_an_interval_is_shown_within_what_a_score_can_be(tmp_path: Path, merganser: Command) -> None:
    for seed in range(2):
        write_cell(tmp_path, cell("forever", seed=seed, tasks=BUILTIN["standard-cl-1"].tasks, level=0.9, noise=0.1))
    lines = merganser("reproduce", NAME, "--results", tmp_path).out.splitlines()
    row = next(line for line in lines if line.split()[:2] == ["forever", "OP"])
    assert row.split()[-3:] == ["to", "100.0", "2"]


def test_a_study_is_written(tmp_path: Path, merganser: Command) -> None:
    done = merganser("reproduce", "magmax-cub", "--write", "study.yaml")
    assert (done.code, "Wrote study.yaml" in done.err) == (0, True)
    assert len(merganser("study", "study.yaml", "--print").out.splitlines()) == 12
    assert "exists" in merganser("reproduce", "magmax-cub", "--write", "study.yaml").error


def test_options_without_what_they_need_are_refused(merganser: Command) -> None:
    assert "is for one entry" in merganser("reproduce", "--results", ".").error
    assert "is for a study's file" in merganser("reproduce", NAME, "--model", "x").error
    assert "--write prints no figures" in merganser("reproduce", NAME, "--write", "x.yaml", "--json").error
    assert "There is no entry" in merganser("reproduce", "forever").error


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", [name for name, entry in catalogue().items() if not entry.on_hub])
def test_an_entry_is_planned_without_its_model_once_every_task_is_found(
    name: str, tmp_path: Path, texts: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = find_entry(name)
    found: list[list[str]] = []
    merganser("reproduce", name, "--write", "study.yaml", "--data", texts)
    monkeypatch.setattr("merganser.study.plan.Learner.plan", _absent_after(found))
    done = merganser("study", "study.yaml", "--plan")
    assert done.code == 0
    assert f"{len(entry.study().cells)} cells" in done.out
    assert f"Not measured: The model '{entry.settings['model']['name']}' does not exist here." in done.out
    assert set(map(tuple, found)) == {BUILTIN[str(entry.settings["orders"][0])].tasks}


def _absent_after(found: list[list[str]]) -> Callable[..., Plan]:
    """In the place of a plan: write down the tasks, and find no model."""

    def plan(config: RunConfig, tasks: Sequence[Task], **_: object) -> Plan:
        found.append([task.name for task in tasks])
        raise mark_missing_model(InputError(f"The model '{config.model.name}' does not exist here."))

    return plan


def test_a_task_without_its_file_is_named_before_anything_is_measured(
    tmp_path: Path, texts: Path, merganser: Command
) -> None:
    merganser("reproduce", "forever-superni", "--write", "study.yaml", "--data", shutil.copytree(texts, tmp_path / "d"))
    (tmp_path / "d" / "data_superni" / "test" / "task748_T5.json").unlink()
    assert "task748" in merganser("study", "study.yaml", "--plan").error


@pytest.mark.parametrize("name", [name for name, entry in catalogue().items() if entry.on_hub])
def test_without_its_images_an_entry_is_planned_as_far_as_it_can_be(
    name: str, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(source: str, *_: object, **__: object) -> None:
        raise ConnectionError(f"Couldn't reach '{source}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", load)
    entry = find_entry(name)
    merganser("reproduce", name, "--write", "study.yaml")
    done = merganser("study", "study.yaml", "--plan")
    assert done.code == 0
    images = IMAGE_SETS[entry.settings["stream"]["name"]]
    assert f"{len(entry.study().cells)} cells" in done.out
    assert f"({images.name}, {images.tasks} tasks of {images.classes} classes). {images.source['train']}" in done.out
    assert "All keys and methods of the study are valid." in done.out
    assert "not estimated" in done.out


def test_images_that_are_not_on_the_hub_are_an_error(merganser: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    merganser("reproduce", "trm-cars", "--write", "study.yaml")
    for raised, planned in ((RunError("hub:x: the connection failed"), True), (InputError("hub:x: none (404)"), False)):
        monkeypatch.setattr("merganser.streams.formats.read_hub", Mock(side_effect=raised))
        done = merganser("study", "study.yaml", "--plan")
        assert ("Data missing: stream" in done.out) is planned
        assert (done.code == 0) is planned
    file = Path("study.yaml")
    file.write_text(file.read_text().replace("epochs:", "epoch:"))
    assert "Did you mean 'epochs'" in merganser("study", file, "--plan").error


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_cannot_be_fetched_is_no_error_of_a_plan(
    offline: bool, tmp_path: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where nothing may be asked for, nor where the network is down."""

    def unreachable(*_: object, **__: object) -> None:
        try:
            raise TransportError("Network is unreachable")
        except TransportError as error:
            raise OSError("We couldn't connect to the hub.") from error

    monkeypatch.setattr("merganser.models.loading.is_offline", lambda: offline)
    monkeypatch.setattr("merganser.files.hub.is_offline", lambda: offline)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    file = write_study(tmp_path, methods=["sequential"])
    values = yaml.safe_load(file.read_text())
    values["model"]["name"] = "owner/model"
    file.write_text(yaml.safe_dump(values))
    done = merganser("study", file, "--plan")
    assert done.code == 0, done.err
    assert "Not measured: The model owner/model is n" in " ".join(done.out.split())
