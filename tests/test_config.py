"""The configuration: unknown keys, wrong types, impossible values, YAML that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merganser.config import (
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
    ("path", "value", "key", "known"),
    [
        ("modle", {}, "modle", "model"),
        ("training.learnig_rate", 1, "training.learnig_rate", "learning_rate"),
        ("model.lora.alhpa", 4, "model.lora.alhpa", "alpha"),
        ("stream.tasks.0.tset", "x", "stream.tasks.0.tset", "test"),
        ("stream.overrides.a.limt", 3, "stream.overrides.a.limt", "limit"),
        ("memory.shar", 0.1, "memory.shar", "share"),
        ("evaluation.futur", True, "evaluation.futur", "future"),
        ("method", {"name": "aim", "intervall": 3}, "method.intervall", "interval"),
        ("method", {"name": "aim", "only_at_end": True}, "method.only_at_end", "ablation.only_at_end"),
        ("method", {"name": "aim", "ablation": {"only_at_and": 1}}, "method.ablation.only_at_and", "only_at_end"),
        ("method", {"name": "aim", "rehearsal_draws": "iid"}, "method.rehearsal_draws", "rehearsal_sampling"),
        ("method", {"name": "aim", "replay_gathered": 4}, "method.replay_gathered", "replay_batches_per_pass"),
        ("method", {"name": "trm", "measure": "literal"}, "method.measure", "ablation.measure"),
        ("model.lora.rank", 4, "model.lora.rank", ["alpha, dora, dropout, r, rslora, targets"]),
        ("method", {"name": "sequential", "batch": 3}, "method.batch", ["name"]),
    ],
)
def test_unknown_keys(path: str, value: Any, key: str, known: str | list[str]) -> None:
    """The nearest known key is suggested, or, where none is near, all are listed."""
    with pytest.raises(InputError) as raised:
        check_config(changed(path, value), "run.yaml")
    assert raised.value.cause == f"run.yaml: {key}: unknown key."
    assert raised.value.remedy.endswith(f" '{known}'?" if isinstance(known, str) else f": {known[0]}.")


def test_the_earlier_name_of_a_value_is_answered_with_its_name_now() -> None:
    with pytest.raises(InputError, match="Did you mean 'epoch'"):
        check_config(changed("method", {"name": "aim", "rehearsal_sampling": "walk"}), "run.yaml")


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("model.kind", "encoder", "model.kind: "),
        ("model.name", 3, "model.name: "),
        ("model.lora.r", 0, "model.lora.r: "),
        ("model.lora.r", "eight", "model.lora.r: "),
        ("model.lora.dropout", 1, "model.lora.dropout: "),
        ("model.chat_template", True, "model: 'chat_template' "),
        ("training.batch", 0, "training.batch: "),
        ("training.batch", 2.5, "training.batch: "),
        ("training.learning_rate", "fast", "training.learning_rate: "),
        ("training.warmup", 1.5, "training: warmup "),
        ("training.schedule", "cosin", "training.schedule: "),
        ("memory.share", 1.5, "memory: share 1.5 "),
        ("memory.number", 0, "memory: number 0 "),
        ("memory.sampler", "newest", "memory.sampler: "),
        ("seed", -1, "seed: "),
        ("stream", {"order": ["a"]}, "stream: 'order' needs 'folder'"),
        ("stream", {"name": "standard-cl-9"}, "'standard-cl-3'"),
        ("stream.tasks.0.metric", "bleu", "stream.tasks.0.metric: "),
        ("method", "aimm", "'aim'? Methods: aim, replay"),
        ("method", {"interval": 3}, "method: it has no 'name'"),
        ("method", 3, "method: give the name"),
        ("method", {"name": ["aim"]}, "method: there is no method '['aim']'"),
        ("method", {"name": "aim", "interval": 0}, "method.interval: "),
        ("method", {"name": "aim", "min_interval": 9, "max_interval": 4}, "method: min_interval 9 "),
    ],
)
def test_wrong_types_and_impossible_values(path: str, value: Any, part: str) -> None:
    with pytest.raises(InputError) as raised:
        check_config(changed(path, value), "run.yaml")
    assert str(raised.value).startswith("run.yaml: ")
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
    with pytest.raises(InputError, match=r"run\.yaml is not YAML: .* at line 3"):
        load_config(file)
    file.write_bytes(b"model: \xff\xfe")
    with pytest.raises(InputError, match="byte 0xff is not UTF-8"):
        load_config(file)
    file.write_text("")
    with pytest.raises(InputError, match="expected sections"):
        load_config(file)
    file.write_text("1: 2\nmodel: {name: m, kind: matcher}\n")
    with pytest.raises(InputError, match=r"run\.yaml: 1: "):
        load_config(file)
    file.write_text("model: !!python/object/apply:os.system [echo]\n")
    with pytest.raises(InputError, match=r"is not YAML: .* at line 1"):
        load_config(file)


def test_a_model_beside_the_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    file = tmp_path / "run.yaml"
    file.write_text("model: {name: models/mine, kind: matcher}\n")
    monkeypatch.chdir("/")
    assert load_config(file).model.name == str(tmp_path / "models" / "mine")
    file.write_text("model: {name: org/model, kind: matcher}\n")
    assert load_config(file).model.name == "org/model"


def test_what_is_written_into_a_run_reads_back_as_the_same_configuration() -> None:
    config = check_config(BASE, "test")
    sections = config.sections()
    assert set(sections) == set(RunConfig.model_fields) - {"stream", "runs"}
    assert check_config(config.model_dump(mode="json"), "run.yaml") == config


@pytest.mark.parametrize("name", METHODS)
def test_a_method_by_name_or_by_mapping(name: str) -> None:
    by_name = check_config({**BASE, "method": name}, "test").method
    assert by_name == check_config({**BASE, "method": {"name": name}}, "test").method
    assert type(by_name) is METHODS[name].Options


def test_known_keys() -> None:
    assert known_keys(RunConfig, ["model", "lora"]) == ["alpha", "dora", "dropout", "r", "rslora", "targets"]
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


def test_differences_of_tasks_name_the_key_that_differs() -> None:
    before = {"tasks": [{"name": "a", "test": "a.csv"}, {"name": "b", "test": "b.csv"}]}
    now = {"tasks": [{"name": "a", "test": "a.csv"}, {"name": "b", "test": "c.csv"}]}
    assert differences(before, now) == ["tasks[1].test: 'b.csv' in the run, 'c.csv' requested"]
    shorter = {"tasks": [{"name": "a", "test": "a.csv"}]}
    assert len(differences(before, shorter)) == 1


def test_compat_sets_options_of_the_method_and_of_the_memory() -> None:
    base = {"model": {"name": "m", "kind": "causal"}}
    asked = {**base, "method": {"name": "aim", "compat": "reference", "interval": 5}, "memory": {"share": 0.1}}
    config = check_config(asked, "f.yaml")
    assert isinstance(config.method, AimOptions)
    assert (config.method.probe_dropout, config.method.rehearsal_sampling) == (True, "iid")
    assert (config.method.interval, config.method.minimum_rehearsal_steps) == (5, 0)
    assert (config.memory.sampler, config.memory.allow_excess, config.memory.share) == ("reference", True, 0.1)
    training = config.training
    assert (training.group_by_length, training.loss_mean, training.epochs) == (False, "batches", 10)
    assert (training.select_best, training.select_by, training.select_every) == (True, "loss", 40)
    assert (training.select_texts, training.select_last) == (25, False)
    assert check_config(config.model_dump(mode="json"), "run.yaml") == config
    asked = {**asked, "training": {"select_best": False, "select_every": 5}}  # these can still be chosen
    training = check_config(asked, "f.yaml").training
    assert (training.select_best, training.select_every, training.select_by) == (False, 5, "loss")
    plain = check_config({**base, "method": "aim"}, "f.yaml")
    assert plain.memory == MemoryOptions()
    assert plain.training == TrainingOptions(asymmetric_loss=True)


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
        ({"rehearsal_gradient": "mean"}, {}, "needs rehearsal_gradient: divided, but rehearsal_gradient is mean"),
        (
            {},
            {"total": 5},
            "memory: total works with all samplers but reference, whose memory is not bounded; method 'aim' chooses "
            "sampler: reference",
        ),
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


@pytest.mark.parametrize(
    ("section", "key"), [("training", "steps"), ("training", "batch"), ("memory", "number"), ("evaluation", "batch")]
)
def test_numbers_that_overflow_are_too_large(section: str, key: str) -> None:
    with pytest.raises(InputError, match=rf"{section}\.{key}: the number is too large") as caught:
        check_config({"model": {"name": "m", "kind": "causal"}, section: {key: 10**400}}, "x.yaml")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "memory",
    [
        {"minimum_per_label": 1},
        {"total": 5},
        {"total": 5, "sampler": "mixed", "surprise_when": "after"},
        {"surprise_when": "after"},
        {"allow_excess": True},
        {"source": "self"},
    ],
)
def test_a_memory_that_is_accepted_can_be_read_again(name: str, memory: dict[str, object]) -> None:
    """The run's file has what the method chooses beside what was given, and must be valid: else nothing resumes."""
    method = {"name": name, "preference": "feature_similarity"} if name == "tunable_magmax" else {"name": name}
    asked = {"model": {"name": "m", "kind": "causal"}, "method": method, "memory": memory}
    for values in (asked, {**asked, "method": {"name": "aim", "compat": "reference"}}):
        try:
            config = check_config(values, "here")
        except InputError:
            continue
        assert check_config(config.model_dump(mode="json", exclude={"stream"}), "run.yaml") == config


def test_a_minimum_per_label_is_a_budget_where_surprise_chooses() -> None:
    asked = {"model": {"name": "m", "kind": "causal"}, "method": "sure", "memory": {"minimum_per_label": 1}}
    assert check_config(asked, "here").memory.sampler == "surprise"
