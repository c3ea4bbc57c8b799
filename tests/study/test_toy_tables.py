"""Every entry of the catalogue is run at toy size: its study as it is written, with a tiny model and made-up data."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from merganser.events import silent
from merganser.streams.builtin import BUILTIN
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.study.catalogue import Entry, catalogue, write_study
from merganser.study.cells import Study, load_study
from merganser.study.folder import StudyFolder
from merganser.study.study import run_one
from tests import tiny
from tests.learner import toys
from tests.study.made_up import write_pictures, write_texts

TASKS, CLASSES = 2, 4
"""Of each stream. That all orders are found whole is tested with ``--plan`` (tests/cli/test_reproduce.py)."""

SMALL = {"steps": 2, "batch": 2, "accumulation": 1, "warmup": 0}
WITH_REFERENCES = "aimmerging-t5-large-standard-cl"


def _deal() -> dict[str, list[str]]:
    """Deal the methods of each family of entries out to its entries; differences need both of their methods in one."""
    dealt: dict[str, list[str]] = {}
    for _, family in itertools.groupby(catalogue().values(), key=lambda entry: list(entry.settings["methods"])):
        entries = list(family)
        labels = list(entries[0].settings["methods"])
        for number, entry in enumerate(entries):
            chosen = labels[number :: len(entries)] or [labels[number % len(labels)]]
            pairs = [name for row in entry.figures if row.minus for name in (row.method, row.minus)]
            dealt[entry.name] = list(dict.fromkeys([*chosen, *(pairs if number == 0 else [])]))
    return dealt


METHODS = _deal()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(write_texts(tmp_path_factory.mktemp("data")), CLASSES)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def _short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stream in BUILTIN.items():  # the last tasks: two orders begin alike
        monkeypatch.setitem(BUILTIN, name, replace(stream, tasks=stream.tasks[-TASKS:]))
    for name, images in IMAGE_SETS.items():
        monkeypatch.setitem(IMAGE_SETS, name, replace(images, tasks=TASKS, classes=CLASSES))


def _small_study(entry: Entry, file: Path, data: Path, model: Path) -> Study:
    """The study as the command writes it, with the first order, one seed and two steps per task."""
    write_study(entry, file, data, str(model))
    values = yaml.safe_load(file.read_text())
    texts = {} if entry.on_hub else {"max_input": 16, "max_target": 4}
    values["training"] |= SMALL | texts
    values |= {"memory": {"share": 0.5}, "seeds": 1, "fwt": entry.name == WITH_REFERENCES}
    values |= {"orders": values["orders"][:1]} if "orders" in values else {}
    if "trm" in values["methods"]:
        values["methods"]["trm"] = {"method": {"name": "trm", "steps": 2}}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_study(file)


def test_every_method_of_the_catalogue_is_run() -> None:
    wanted = {(entry.paper.title, label) for entry in catalogue().values() for label in entry.settings["methods"]}
    assert {(catalogue()[name].paper.title, label) for name, labels in METHODS.items() for label in labels} == wanted


@pytest.mark.parametrize("name", catalogue())
@pytest.mark.usefixtures("_short_streams")
def test_a_table_is_run_at_toy_size_and_printed_beside_the_published_one(
    name: str,
    tmp_path: Path,
    data: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entry, out, labels = catalogue()[name], tmp_path / "out", METHODS[name]
    kind = str(entry.settings["model"]["kind"])
    study = _small_study(entry, tmp_path / "study.yaml", data, clip if kind == "matcher" else toys.model_folder(kind))
    for cell in study.cells:
        if cell.method in labels:
            run_one(study, StudyFolder(out), cell, silent)
    printed = json.loads(toys.Command(monkeypatch, capsys)("reproduce", name, "--results", out, "--json").out)
    published = {(row.method, row.minus, m): v for row in entry.figures for m, v in row.values.items()}
    fwt_known = name == WITH_REFERENCES
    for each in printed["comparison"]:
        key = (each["method"], each["minus"], each["figure"])
        assert each["published"] == published.get(key)
        needed = {each["method"], each["minus"]} - {None}
        if needed <= set(labels) and (each["figure"] != "fwt" or fwt_known):
            assert each["measured"]["runs"] == 1, key
            assert -100 <= each["measured"]["mean"] <= 100
        else:
            assert each["measured"] is None, key
    measured = {each["method"] for each in printed["comparison"] if each["measured"]}
    assert measured == set(labels)
