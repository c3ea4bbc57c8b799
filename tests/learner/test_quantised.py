"""A run on quantised weights: its record, and what its merged export says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merganser.learner import Learner
from merganser.learner.exported import ExportedModel
from merganser.models.weight_format import keep_as_stored
from merganser.streams.loading import load_stream
from tests.learner.toys import Command, model_folder, read_json, settings, write_config, write_stream


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task learned on 4-bit weights with an 8-bit optimizer."""
    from merganser.config import load_config

    folder = tmp_path_factory.mktemp("quantised")
    write_stream(folder)
    model = {"name": str(model_folder("causal", width=64)), "kind": "causal", "weights": "4bit"}
    training = {"steps": 2, "optimizer": "paged_adamw_8bit"}
    path = write_config(folder / "stream.yaml", settings(("mood",), model=model, training=training))
    config = load_config(path)
    assert config.stream is not None
    with Learner.of_config(folder / "run", config) as learner:
        learner.learn_stream(load_stream(config.stream, folder).tasks)
    return folder / "run"


def test_the_record_has_the_weights_and_the_device(run: Path) -> None:
    import yaml

    resolved = yaml.safe_load((run / "run.yaml").read_text())["config"]["resolved"]
    assert (resolved["weights"], resolved["device"], resolved["precision"]) == ("4bit", "cpu", "fp32")


def test_a_merged_export_says_how_it_differs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    command = Command(monkeypatch, capsys)
    done = command("export", run, tmp_path / "merged", "--merged", "--dtype", "bfloat16")
    assert done.code == 0, done.err
    assert command("export", run, tmp_path / "adapter").code == 0
    assert not (tmp_path / "adapter" / "quantisation.json").exists()
    for folder, holds in (("merged", "model"), ("adapter", "adapter")):
        lineage = read_json(tmp_path / folder / "lineage.json")
        assert lineage["quantisation"] == "bitsandbytes nf4, doubly quantised"
        assert lineage["holds"] == holds
    record = read_json(tmp_path / "merged" / "quantisation.json")
    assert record["weights"] == "4bit"
    assert record["texts"] == 8
    said = f"Of 8 texts, {record['equal_answers']} have the same answer"
    assert said in done.out
    assert said in (tmp_path / "merged" / "README.md").read_text()

    # The same numbers from plain libraries.
    quantised = AutoModelForCausalLM.from_pretrained(
        model_folder("causal", width=64),
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    keep_as_stored(quantised)  # its layers are smaller than those that bitsandbytes can pack
    with_adapter = PeftModel.from_pretrained(quantised, tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    largest, equal = 0.0, 0
    for row in read_json(run.parent / "mood-test.json"):
        prompt = torch.tensor([tokenizer(row["input"])["input_ids"]])
        answer = tokenizer(f" {row['output']}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        whole = torch.cat([prompt, torch.tensor([answer])], 1)
        with torch.no_grad():
            logits = [model(whole).logits[0, prompt.shape[1] - 1 : -1] for model in (with_adapter, merged)]
        largest = max(largest, float((logits[0] - logits[1]).abs().max()))
        settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": tokenizer.eos_token_id}
        written = [model.generate(input_ids=prompt, **settings) for model in (with_adapter, merged)]
        equal += torch.equal(*written)
    assert record["largest_logit_difference"] == pytest.approx(largest, rel=1e-3)
    assert largest > 1e-3  # bfloat16 rounds
    assert record["equal_answers"] == equal


def test_an_optimizer_without_its_package_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from merganser.config import check_config
    from merganser.errors import InputError

    config = check_config(settings(training={"optimizer": "adamw_8bit"}), "file")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"training\.optimizer: adamw_8bit needs the package bitsandbytes"):
        Learner.of_config(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_an_optimizer_whose_moments_a_method_reads() -> None:
    from merganser.config import check_config
    from merganser.errors import InputError

    values = settings(training={"optimizer": "sgd"})
    values["method"] = {"name": "trm", "ablation": {"augmentation": "adam"}}
    with pytest.raises(InputError, match=r"'trm' reads the moments of AdamW.*optimizer is sgd"):
        check_config(values, "file")


def test_exports_are_read_back(run: Path, tmp_path: Path) -> None:
    with Learner.open(run, read_only=True) as learner:
        expected = learner.predict(["great film with a strong story"])
        learner.export(tmp_path / "adapter")
        learner.export(tmp_path / "merged", merged=True)
    model = ExportedModel.open(str(tmp_path / "adapter"), model_path=str(model_folder("causal", width=64)))
    assert model.predict(["great film with a strong story"]) == expected
    assert model.backbone.weights == "4bit"
    model = ExportedModel.open(str(tmp_path / "merged"))
    assert len(model.predict(["great film with a strong story"])) == 1
    assert model.backbone.weights == "fp32"
