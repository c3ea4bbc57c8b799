"""A run that begins with an adapter: row 0 is base plus adapter, and the adapter is trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from merganser.config import check_config, load_config
from merganser.errors import InputError
from merganser.files.digests import file_digest
from merganser.learner import Learner
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.streams.loading import load_stream
from merganser.streams.task import Task
from tests.learner.toys import model_folder, settings, write_stream

LENGTHS = Lengths(32, 8)
LORA = {"r": 2, "alpha": 6, "rslora": True, "targets": "all-linear"}


def tasks_of(folder: Path) -> list[Task]:
    config = load_config(folder / "stream.yaml")
    assert config.stream is not None
    return list(load_stream(config.stream, folder).tasks)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    write_stream(folder)
    return folder


@pytest.fixture(scope="module")
def exported(stream: Path) -> Path:
    """An adapter that another run learned the first task with and exported."""
    config = check_config(settings(model={"lora": LORA}), "file")
    with Learner.of_config(stream / "first", config) as learner:
        learner.learn(tasks_of(stream)[0])
        learner.export(stream / "adapter")
    return stream / "adapter"


@pytest.fixture
def adapter(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "adapter"))


def begun(adapter: Path, **changes: Any) -> dict[str, Any]:
    """A configuration that begins with the adapter and leaves its options out."""
    values = settings(**changes)
    values["model"] = {key: value for key, value in values["model"].items() if key != "lora"}
    values["model"] |= {"adapter": str(adapter), **changes.get("model", {})}
    return values


def test_row_0_is_base_plus_adapter_and_the_export_is_one_adapter(stream: Path, adapter: Path, tmp_path: Path) -> None:
    _, second = tasks_of(stream)
    config = check_config(begun(adapter), "file")
    start = load_file(adapter / "adapter_model.safetensors")
    digest = file_digest(adapter / "adapter_model.safetensors")
    with Learner.of_config(tmp_path / "run", config) as learner:
        learner.learn(second)
    shutil.rmtree(adapter)  # the run has what it needs
    with Learner.of_config(tmp_path / "run", config) as learner:
        rows = learner.session.rows
        row_0 = load_file(rows[0].folder / "adapter" / "adapter_model.safetensors")
        assert {name: tensor.tolist() for name, tensor in row_0.items()} == {n: t.tolist() for n, t in start.items()}
        learner.export(tmp_path / "out")
        lora = learner.session.backbone.options.lora
        assert lora is not None
        assert (lora.r, lora.alpha, lora.rslora) == (2, 6, True)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["use_rslora"]) == (2, 6, True)
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert lineage["parents"] == [{"name": "adapter", "weights": digest}]
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in start.items()}
    assert any(not tensor.equal(start[name]) for name, tensor in after.items())
    # As the first run's model answered, so does this one before it learns.
    with Learner.open(stream / "first", read_only=True) as first:
        expected = first.predict(["great film with a strong story"], "mood")[0]
    backbone = load_backbone(
        ModelOptions(name=str(model_folder()), kind="matcher", precision="fp32", adapter=str(tmp_path / "out")),
        LENGTHS,
        0,
    )
    backbone.load_weights(rows[0].folder / "adapter")
    assert backbone.answer(["great film with a strong story"], tasks_of(stream)[0].spec)[0].score == expected.score
    backbone.reset(5)  # reads the adapter that it began with
    assert all(tensor.equal(after[name]) for name, tensor in _tensors(backbone).items())


def _tensors(backbone: Any) -> dict[str, Any]:
    from merganser.models.stacking import TRAINED, adapter_tensors

    return adapter_tensors(backbone.model, TRAINED)


def load(adapter: Path, **model: Any) -> Any:
    return load_backbone(check_config(begun(adapter, model=model), "file").model, LENGTHS, 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base_model_name_or_path": "owner/other"}, "was trained on owner/other"),
        ({"rank_pattern": {"query": 4}}, "has rank_pattern"),
        ({"modules_to_save": ["pooler"]}, "has modules_to_save"),
        ({"bias": "all"}, "trained biases"),
        ({"peft_type": "IA3"}, "is of type IA3"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 3}, "does not fit the model.*shape"),
        ({"target_modules": ["q_proj"]}, "no linear layer 'q_proj'"),
        ({"target_modules": ["query"]}, "does not fit the model.*names differ"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter: Path, config: dict[str, Any], message: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(InputError, match=message):
        load(adapter)


def test_a_placeholder_is_no_name_and_the_hash_tells_the_base(adapter: Path, tmp_path: Path) -> None:
    """An export from a folder names ``./base/NAME``: its base may be renamed, but not be another one."""
    path = adapter / "adapter_config.json"
    named = json.loads(path.read_text())["base_model_name_or_path"]
    assert named.startswith("./base/")
    renamed = shutil.copytree(model_folder(), tmp_path / "renamed")
    assert load(adapter, name=str(renamed)).options.adapter == str(adapter)
    lineage = adapter / "lineage.json"
    lineage.write_text(lineage.read_text().replace(json.loads(lineage.read_text())["base"]["sha256"], "0" * 64))
    config = check_config(begun(adapter, model={"name": str(renamed)}), "file")
    with pytest.raises(InputError, match="is another model"):
        Learner.of_config(tmp_path / "run", config)
    lineage.unlink()
    with pytest.raises(InputError, match=r"was trained on \./base/"):
        load(adapter, name=str(renamed))


def test_tokens_of_its_own_are_refused(adapter: Path) -> None:
    import torch

    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.embeddings.word_embeddings.weight": torch.ones(500, 32)}, path)
    with pytest.raises(InputError, match=r"holds whole weights, such as .*word_embeddings\.weight of 500 rows"):
        load(adapter)


def test_its_layers_may_be_a_pattern(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ".*(query|key|value|dense)"}))
    after = load_file(adapter / "adapter_model.safetensors")
    assert all(tensor.equal(after[name]) for name, tensor in _tensors(load(adapter)).items())


@pytest.mark.parametrize(("key", "value"), [("r", 4), ("alpha", 7), ("dora", True), ("targets", "mlp")])
def test_other_options_of_lora_are_refused(adapter: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"model\.lora\.{key} is {value}(\.0)?, and the adapter") as error:
        load(adapter, lora={key: value})
    assert "merganser merge BASE+ADAPTER" in error.value.remedy


def test_no_adapter_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no adapter"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"lora": None}}, "would be trained on, and lora is null"),
        ({"method": {"name": "olora"}}, r"updates B A, which must be zero.*merganser merge BASE\+ADAPTER"),
    ],
)
def test_where_there_can_be_none(changes: dict[str, Any], message: str) -> None:
    values = begun(Path("x"), **{key: value for key, value in changes.items() if key == "model"})
    values["method"] = changes.get("method", values["method"])
    with pytest.raises(InputError, match=message):
        check_config(values, "file")


def test_another_base_of_the_same_name_is_refused(adapter: Path, tmp_path: Path) -> None:
    from tests import tiny

    tiny.tiny_bert(tmp_path / model_folder().name, seed=9, layers=1)
    config = check_config(begun(adapter, model={"name": str(tmp_path / model_folder().name)}), "file")
    with pytest.raises(InputError, match=r"The adapter in .* was trained on .* is another model"):
        Learner.of_config(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_changed_before_the_first_row(adapter: Path, tmp_path: Path) -> None:
    config = check_config(begun(adapter), "file")
    Learner.of_config(tmp_path / "run", config).close()
    Learner.of_config(tmp_path / "run", config).close()
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(InputError, match="has changed since"):
        Learner.of_config(tmp_path / "run", config)


def test_a_path_beside_the_file(stream: Path, exported: Path) -> None:
    values = settings(model={"adapter": "adapter"})
    (stream / "with.yaml").write_text(json.dumps(values))
    assert load_config(stream / "with.yaml").model.adapter == str(exported)
