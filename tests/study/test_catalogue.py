"""The catalogue of published tables: its studies are valid, and results stand beside what was published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from merganser.errors import InputError
from merganser.streams.builtin import BUILTIN
from merganser.streams.images.image_sets import IMAGE_SETS
from merganser.study.catalogue import CatalogueFile, catalogue, find_entry, study_text, write_study
from merganser.study.cell_record import write_cell
from merganser.study.cells import load_study
from merganser.study.folder import config_changes
from merganser.study.reproduction import reproduce
from merganser.study.study import Outcome
from tests.learner import toys
from tests.study.made_up import cell

T5 = "olora-standard-cl"


@pytest.mark.parametrize("name", catalogue())
def test_the_study_of_every_entry_is_valid_without_its_model(name: str) -> None:
    entry = find_entry(name)
    study = entry.study()  # every key, method, order
    stream = study.options.named_streams["stream"].name
    assert stream in (IMAGE_SETS if entry.on_hub else BUILTIN)
    assert len({cell.seed for cell in study.cells}) == 3
    labels = {cell.method for cell in study.cells}
    assert study.options.reference in labels
    for row in entry.figures:
        assert row.values, "a row without a figure"
        assert row.minus is None or {row.method, row.minus} <= labels
    if entry.on_hub:
        assert study.cells[0].config.training.epochs == IMAGE_SETS[str(stream)].epochs


def test_the_catalogue_has_every_order_of_the_benchmarks_on_every_model_of_aimmerging() -> None:
    orders: dict[str, set[str]] = {}
    for name, entry in catalogue().items():
        if name.startswith("aimmerging"):
            found = orders.setdefault(str(entry.settings["model"]["name"]), set())
            found |= {cell.stream.order for cell in entry.study().cells}
    assert orders == {
        model: set(BUILTIN)
        for model in (
            "google-t5/t5-large",
            "meta-llama/Llama-2-7b-hf",
            "meta-llama/Llama-2-13b-hf",
            "Qwen/Qwen3-1.7B",
        )
    }
    assert len(BUILTIN) == 8
    streams = {entry.settings["stream"]["name"] for entry in catalogue().values() if entry.on_hub}
    assert streams >= {"cifar100-10", "imagenet-r-10", "cub200-10", "cars-10"}


def test_names_in_the_data_are_checked() -> None:
    row = {"method": "x", "op": 1.0, "source": "p", "evidence": "N"}
    values: dict[str, Any] = {"evidence": {"N": "notes"}, "papers": {"p": {"title": "P"}}, "parts": {}}
    entry = {"paper": "p", "table": "T", "figures": [row]}
    assert CatalogueFile(**values, entries={"e": entry}).entries["e"].figures[0].values == {"op": 1.0}
    for wrong, message in (
        ({**entry, "use": ["absent"]}, "no part 'absent'"),
        ({**entry, "paper": "q"}, "no paper 'q'"),
        ({**entry, "figures": [{**row, "evidence": "Z"}]}, "no mark of evidence 'Z'"),
    ):
        with pytest.raises(ValueError, match=message):
            CatalogueFile(**values, entries={"e": wrong})
    with pytest.raises(InputError, match=r"no entry 'olora-standrad-cl'.*Did you mean 'olora-standard-cl'"):
        find_entry("olora-standrad-cl")


def write_benchmark(folder: Path, name: str) -> Path:
    """Made-up texts under the names of the tasks of a built-in order, in the layout of the published files."""
    for split in ("train", "dev", "test"):
        (folder / split).mkdir(parents=True)
        for task in BUILTIN[name].tasks:
            rows = toys.rows("mood", 4 if split != "train" else 8, seed=len(split))
            toys.write_rows(folder / split / f"{task}_T5.json", rows)
    return folder


def test_an_entry_is_written_run_at_toy_size_and_compared(tmp_path: Path, run_study: Callable[..., Outcome]) -> None:
    write_benchmark(tmp_path / "data" / "data_longsequence", "standard-cl-1")
    entry, file = find_entry(T5), tmp_path / "study.yaml"
    model = str(toys.model_folder("seq2seq"))
    write_study(entry, file, tmp_path / "data", model)
    full = load_study(file)
    wanted = entry.study().cells
    assert [cell.name for cell in full.cells] == [cell.name for cell in wanted]
    changes = config_changes(full.cells[0].config.model_dump(mode="json"), wanted[0])
    assert [change.split(":")[0] for change in changes] == ["model.name", "stream.folder"]

    values = yaml.safe_load(file.read_text())
    values["training"] |= {"steps": 1, "batch": 4, "accumulation": 1, "max_input": 16, "max_target": 4}
    values |= {"orders": ["standard-cl-1"], "seeds": 1, "methods": {"sequential": None}}
    values["stream"]["limit"] = 3
    values["reference"] = "sequential"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    assert run_study(file, tmp_path / "out").failed == {}
    found = reproduce(entry, tmp_path / "out")
    shown = {(each.title, each.measure): (each.published, each.runs) for each in found.comparisons}
    assert shown == {
        ("sequential", "op"): (43.7, 1),
        ("sequential", "bwt"): (-50.4, 1),
        ("olora", "op"): (75.8, 0),
        ("olora", "bwt"): (-3.8, 0),
        ("joint", "op"): (80.3, 0),
    }
    measured = [each for each in found.comparisons if each.runs]
    assert all(each.measured is not None for each in measured)
    assert found.planned == 9
    changed = {each.split(":")[0] for each in found.otherwise}
    assert changed == {"model.name", "stream.limit", *(f"training.{key}" for key in (
        "steps", "batch", "accumulation", "max_input", "max_target"))}  # fmt: skip


def test_differences_are_paired_and_numbers_have_intervals(tmp_path: Path) -> None:
    entry = find_entry("aimmerging-t5-large-standard-cl")
    tasks = BUILTIN["standard-cl-1"].tasks
    for method, level in (("aim", 0.8), ("recurrent-kif", 0.7), ("other", 0.5)):
        for order in ("1", "2"):
            for seed in range(2 if method == "recurrent-kif" else 3):
                write_cell(tmp_path, cell(method, order, seed, level=level, tasks=tasks, n=50))
    found = {(each.title, each.measure): each for each in reproduce(entry, tmp_path).comparisons}
    aim, gain = found["aim", "op"], found["aim − recurrent-kif", "op"]
    assert (aim.published, aim.runs, gain.published, gain.runs) == (None, 6, 1.9, 4)
    for each, low, high in ((aim, 0.6, 0.9), (gain, 0.0, 0.2)):
        number = each.measured
        assert number is not None
        assert number.low is not None
        assert number.high is not None
        assert low < number.low < number.mean < number.high < high
    assert found["aim − recurrent-kif", "fwt"].measured is None  # without single-task models it is undefined
    assert found["olora", "op"].measured is None
    assert ("other", "op") not in found


def test_methods_that_are_not_offered_are_listed_and_folders_without_results_are_not_run(tmp_path: Path) -> None:
    found = {each.method: each for each in reproduce(find_entry("forever-superni"), tmp_path).comparisons}
    assert not found["SAPT"].offered
    assert (found["forever"].offered, found["forever"].runs) == (True, 0)
    write_cell(tmp_path, cell("forever", n=10))
    with pytest.raises(InputError, match="other tasks"):
        reproduce(find_entry("forever-superni"), tmp_path)
    with pytest.raises(InputError, match="no folder"):
        reproduce(find_entry("forever-superni"), tmp_path / "absent")


def test_a_study_is_written_once_and_only_beside_its_data(tmp_path: Path) -> None:
    entry, images = find_entry(T5), find_entry("magmax-cars")
    assert yaml.safe_load(study_text(entry))["stream"]["folder"] == "data/data_longsequence"
    assert "folder" not in yaml.safe_load(study_text(images))["stream"]
    assert study_text(entry).startswith("# T5-large, Standard CL.\n# Wang et al. 2023")
    with pytest.raises(InputError, match="data_longsequence"):
        write_study(entry, tmp_path / "study.yaml", tmp_path)
    with pytest.raises(InputError, match="no folder"):
        write_study(entry, tmp_path / "absent" / "study.yaml")
    write_study(entry, tmp_path / "study.yaml")
    with pytest.raises(InputError, match="exists"):
        write_study(entry, tmp_path / "study.yaml")
