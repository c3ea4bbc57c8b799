"""The configuration: unknown keys, wrong types, impossible values, YAML that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.config import (
    EvaluationOptions,
    RunConfig,
    check_config,
    differences,
    explain_options,
    known_keys,
    load_config,
)
from merganser.errors import InputError
from merganser.methods import METHODS
from merganser.methods.aim import AimOptions
from merganser.streams.options import MemoryOptions
from merganser.training.options import TrainingOptions

BASE: dict[str, Any] = {
    "model": {"name": "m", "kind": "matcher"},
    "stream": {"tasks": [{"name": "a", "train": "a.csv"}]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The base with a value at a dotted path."""
    result: Any = {"model": dict(BASE["model"]), "stream": {"tasks": [dict(BASE["stream"]["tasks"][0])]}}
    target = result
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if part.isdigit() else target.setdefault(part, {})
    target[last] = value
    return result


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modle", {}, "run.yaml: modle: unknown key. Did you mean 'model'?"),
        ("training.learnig_rate", 1, "run.yaml: training.learnig_rate: unknown key. Did you mean 'learning_rate'?"),
        ("model.lora.rank", 4, "run.yaml: model.lora.rank: unknown key. Known keys: alpha, dropout, r, targets."),
        ("model.lora.alhpa", 4, "run.yaml: model.lora.alhpa: unknown key. Did you mean 'alpha'?"),
        ("stream.tasks.0.tset", "x", "run.yaml: stream.tasks.0.tset: unknown key. Did you mean 'test'?"),
        ("stream.overrides.a.limt", 3, "run.yaml: stream.overrides.a.limt: unknown key. Did you mean 'limit'?"),
        ("memory.shar", 0.1, "run.yaml: memory.shar: unknown key. Did you mean 'share'?"),
        ("evaluation.futur", True, "run.yaml: evaluation.futur: unknown key. Did you mean 'future'?"),
        (
            "method",
            {"name": "aim", "intervall": 3},
            "run.yaml: method.intervall: unknown key. Did you mean 'interval'?",
        ),
        (
            "method",
            {"name": "aim", "only_at_end": True},
            "run.yaml: method.only_at_end: unknown key. Did you mean 'ablation.only_at_end'?",
        ),
        (
            "method",
            {"name": "aim", "ablation": {"only_at_and": True}},
            "run.yaml: method.ablation.only_at_and: unknown key. Did you mean 'only_at_end'?",
        ),
        (
            "method",
            {"name": "sequential", "batch": 3},
            "run.yaml: method.batch: unknown key. Known keys: name.",
        ),
    ],
)
def test_unknown_keys(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        check_config(changed(path, value), "run.yaml")
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        (
            "model.kind",
            "encoder",
            "run.yaml: model.kind: Input should be 'seq2seq', 'causal' or 'matcher' (got 'encoder')",
        ),
        ("model.name", 3, "run.yaml: model.name: Input should be a valid string (got 3)"),
        ("model.lora.r", 0, "run.yaml: model.lora.r: Input should be greater than or equal to 1 (got 0)"),
        ("model.lora.r", "eight", "run.yaml: model.lora.r: Input should be a valid integer"),
        ("model.lora.dropout", 1, "run.yaml: model.lora.dropout: Input should be less than 1 (got 1)"),
        (
            "model.chat_template",
            True,
            "run.yaml: model: 'chat_template' is an option of kind 'causal', not of 'matcher'",
        ),
        ("training.batch", 0, "run.yaml: training.batch: Input should be greater than 0 (got 0)"),
        ("training.batch", 2.5, "run.yaml: training.batch: Input should be a valid integer"),
        ("training.learning_rate", "fast", "run.yaml: training.learning_rate: Input should be a valid number"),
        ("training.warmup", 1.5, "run.yaml: training: warmup is 1.5; give whole steps"),
        ("training.schedule", "cosin", "run.yaml: training.schedule: Input should be 'linear', 'cosine'"),
        ("memory.share", 1.5, "run.yaml: memory: share 1.5 is not above 0 and at most 1"),
        ("memory.number", 0, "run.yaml: memory: number 0 keeps nothing"),
        ("memory.sampler", "newest", "run.yaml: memory.sampler: Input should be 'per_label', 'uniform' or 'reference'"),
        ("seed", -1, "run.yaml: seed: Input should be greater than or equal to 0 (got -1)"),
        ("stream", {"order": ["a"]}, "run.yaml: stream: 'order' needs 'folder'"),
        (
            "stream",
            {"name": "standard-cl-9"},
            "'standard-cl-9' is not a built-in stream. Did you mean 'standard-cl-3'? `merganser schema`",
        ),
        ("stream.tasks.0.metric", "bleu", "run.yaml: stream.tasks.0.metric: Input should be "),
        ("method", "aimm", "run.yaml: method: there is no method 'aimm'. Did you mean 'aim'? Methods: aim, replay"),
        ("method", {"interval": 3}, "run.yaml: method: it has no 'name'. Methods: aim, replay"),
        ("method", 3, "run.yaml: method: give the name of a method, or a mapping with 'name' and its options (got 3)"),
        ("method", {"name": ["aim"]}, "run.yaml: method: there is no method '['aim']'"),
        (
            "method",
            {"name": "aim", "interval": 0},
            "run.yaml: method.interval: Input should be greater than or equal to 1",
        ),
        (
            "method",
            {"name": "aim", "min_interval": 9, "max_interval": 4},
            "run.yaml: method: min_interval 9 is larger than max_interval 4",
        ),
    ],
)
def test_wrong_types_and_impossible_values(path: str, value: Any, part: str) -> None:
    with pytest.raises(InputError) as raised:
        check_config(changed(path, value), "run.yaml")
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_key_and_no_mapping() -> None:
    with pytest.raises(InputError, match=r"run.yaml: model: missing\. Add it"):
        check_config({"seed": 1}, "run.yaml")
    with pytest.raises(InputError, match=r"run.yaml: model\.kind: missing"):
        check_config({"model": {"name": "m"}}, "run.yaml")
    for value in (None, [], "model"):
        with pytest.raises(InputError, match="expected sections such as"):
            check_config(value, "run.yaml")


def test_an_unknown_key_comes_before_the_key_that_is_missing_because_of_it() -> None:
    with pytest.raises(InputError, match=r"model\.nmae: unknown key \(1 more like this\)\. Did you mean 'name'\?"):
        check_config({"model": {"nmae": "m", "kind": "matcher"}}, "run.yaml")


def test_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  name: m\n kind: [matcher\n")
    with pytest.raises(InputError, match=r"run\.yaml: not YAML at line 3"):
        load_config(file)
    file.write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match="Give a YAML file in UTF-8"):
        load_config(file)
    file.write_text("")
    with pytest.raises(InputError, match="expected sections"):
        load_config(file)
    file.write_text("1: 2\nmodel: {name: m, kind: matcher}\n")
    with pytest.raises(InputError, match=r"run\.yaml: 1: "):
        load_config(file)
    file.write_text("model: !!python/object/apply:os.system [echo]\n")
    with pytest.raises(InputError, match="not YAML at line 1"):
        load_config(file)


def test_a_model_beside_the_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    file = tmp_path / "run.yaml"
    file.write_text("model: {name: models/mine, kind: matcher}\n")
    monkeypatch.chdir("/")
    assert load_config(file).model.name == str(tmp_path / "models" / "mine")
    file.write_text("model: {name: org/model, kind: matcher}\n")
    assert load_config(file).model.name == "org/model"


def test_defaults_and_what_must_stay_the_same() -> None:
    config = check_config(BASE, "test")
    assert config.method.name == "aim"
    assert config.memory.share == 0.02
    assert config.evaluation == EvaluationOptions(future=True, batch=64)
    sections = config.sections()
    assert "stream" not in sections
    assert set(sections) == set(RunConfig.model_fields) - {"stream"}
    # What is written into run.yaml reads back as the same configuration.
    assert check_config(config.model_dump(mode="json"), "run.yaml") == config


@pytest.mark.parametrize("name", METHODS)
def test_a_method_by_name_or_by_mapping(name: str) -> None:
    by_name = check_config({**BASE, "method": name}, "test").method
    assert by_name == check_config({**BASE, "method": {"name": name}}, "test").method
    assert type(by_name) is METHODS[name].Options


def test_known_keys() -> None:
    assert known_keys(RunConfig, ["model", "lora"]) == ["alpha", "dropout", "r", "targets"]
    assert "interval" in known_keys(RunConfig, ["method"], ["method", "aim", "x"])
    assert "interval" not in known_keys(RunConfig, ["method"], ["method", "replay", "x"])


def test_one_section_on_its_own() -> None:
    assert explain_options(TrainingOptions, {"batch": 3}, "here").batch == 3
    with pytest.raises(InputError, match=r"here: bacth: unknown key\. Did you mean 'batch'\?"):
        explain_options(TrainingOptions, {"bacth": 3}, "here")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=2), plain, max_size=4))
def test_a_configuration_does_not_differ_from_itself(value: dict[str, Any]) -> None:
    assert differences(value, value) == []


def test_differences() -> None:
    before = {"a": 1, "b": {"c": 2, "d": [1]}, "e": None}
    now = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "f": {}}
    assert differences(before, now) == [
        "b.c: 2 in the run, 3 requested",
        "b.d: [1] in the run, [1, 2] requested",
        "f: None in the run, {} requested",
    ]


def test_compat_sets_options_of_the_method_and_of_the_memory() -> None:
    base = {"model": {"name": "m", "kind": "causal"}}
    asked = {**base, "method": {"name": "aim", "compat": "reference", "interval": 5}, "memory": {"share": 0.1}}
    config = check_config(asked, "f.yaml")
    assert isinstance(config.method, AimOptions)
    assert (config.method.probe_dropout, config.method.rehearsal_sampling) == (True, "iid")
    assert (config.method.interval, config.method.minimum_rehearsal_steps) == (5, 0)
    assert (config.memory.sampler, config.memory.allow_excess, config.memory.share) == ("reference", True, 0.1)
    assert check_config(config.model_dump(mode="json"), "run.yaml") == config
    plain = check_config({**base, "method": "aim"}, "f.yaml")
    assert plain.memory == MemoryOptions()


@pytest.mark.parametrize(
    ("method", "memory", "message"),
    [
        ({"probe_dropout": False}, {}, "compat: reference needs probe_dropout: true, but probe_dropout is false"),
        ({"probe_every": 4}, {}, "compat: reference needs probe_every: 1, but probe_every is 4"),
        (
            {},
            {"sampler": "uniform"},
            "reference needs memory.sampler: reference, but memory.sampler is uniform",
        ),
        ({}, {"minimum_per_label": 1}, "needs memory.minimum_per_label: 0, but memory.minimum_per_label is 1"),
    ],
)
def test_an_option_against_compat_is_refused(
    method: dict[str, object], memory: dict[str, object], message: str
) -> None:
    asked = {
        "model": {"name": "m", "kind": "causal"},
        "method": {"name": "aim", "compat": "reference", **method},
        "memory": memory,
    }
    with pytest.raises(InputError, match=message):
        check_config(asked, "f.yaml")
