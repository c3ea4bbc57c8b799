"""Other data mixed into a task: its share, its order, and what was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.config import load_config
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.learner import Learner
from merganser.streams.answers import AnswerSpec
from merganser.streams.dpo import DpoOptions
from merganser.streams.loading import load_stream
from merganser.streams.mixing import mixed_before, rows_with_mix
from merganser.streams.task import Example, Mix, Stream, Task
from merganser.training.data import EpochOrder, FeatureList, MixedOrder, Mixture
from tests import tiny
from tests.learner.toys import model_folder, settings, write_config, write_stream


def order(own: int, others: int, share: float, batch: int = 4, grouped: bool = False) -> MixedOrder:
    lengths = [1 + i * 7 % 50 if grouped else 0 for i in range(own)]
    mixture = Mixture([{"length": 1 + i * 3 % 50} for i in range(others)], share)
    return MixedOrder(EpochOrder(lengths, batch, 3), mixture)


def epochs(mixed: MixedOrder, number: int) -> list[list[int]]:
    found = []
    for epoch in range(number):
        mixed.set_epoch(epoch)
        found.append(list(mixed))
    return found


@pytest.mark.parametrize(("own", "share"), [(40, 0.05), (7, 0.05), (33, 0.3), (10, 0.5), (1, 0.9)])
def test_every_run_of_rows_holds_the_share_to_within_one_row(own: int, share: float) -> None:
    rows = [index for epoch in epochs(order(own, 9, share), 5) for index in epoch]
    assert len(rows) == 5 * rows_with_mix(own, share)
    is_mixed = [index >= own for index in rows]
    for start in range(0, len(rows) - 3, 4):
        assert abs(sum(is_mixed[start : start + 4]) - 4 * share) < 1 + 1e-9
        assert abs(sum(is_mixed[:start]) - start * share) <= 0.5
    assert sum(is_mixed) == mixed_before(len(rows), share)


def test_both_sources_are_read_whole_before_anything_is_read_again() -> None:
    own, others = 10, 6
    rows = [index for epoch in epochs(order(own, others, 0.3), 4) for index in epoch]
    for first, size in ((0, own), (own, others)):
        seen = [index for index in rows if first <= index < first + size]
        passes = [seen[start : start + size] for start in range(0, len(seen) - size + 1, size)]
        assert all(sorted(one) == list(range(first, first + size)) for one in passes)
        assert passes[0] != passes[1]
    assert set(range(own)) <= set(epochs(order(own, others, 0.3), 1)[0])


def test_it_is_a_function_of_the_epoch_and_puts_long_texts_beside_long_ones() -> None:
    mixed = order(400, 100, 0.1, grouped=True)
    first, second = epochs(mixed, 2)
    mixed.set_epoch(1)
    assert list(mixed) == second != first
    lengths = [*mixed.task_order.lengths, *mixed.lengths]
    gaps = [
        abs(lengths[index] - lengths[first[place - 1]]) for place, index in enumerate(first) if index >= 400 and place
    ]
    assert sum(gaps) / len(gaps) < 8  # about 17 at random


def test_the_length_of_the_data_is_the_tasks_own() -> None:
    data = FeatureList([{"x": 1}, {"x": 2}], Mixture([{"x": 3, "length": 1}], 0.5))
    assert (len(data), list(data)) == (2, [{"x": 1}, {"x": 2}])
    assert data[2] == {"x": 3, "length": 1, "source": "mix"}
    assert data[-3] == {**data[2], "is_padding": True}


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream whose first task has a mix of chats; the models are causal and packed."""
    folder = tmp_path_factory.mktemp("mix")
    write_stream(folder)
    messages = [
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"number {i}"}] for i in range(3)
    ]
    lines = [json.dumps({"messages": one}) for one in messages]
    (folder / "general.jsonl").write_text("\n".join(lines), encoding="utf-8")
    texts = [*tiny.TEXTS, "say number 0 1 2"]
    tiny.tiny_llama(folder / "model", texts, layers=1, pad=True, chat=True)
    return folder


def configured(folder: Path, mix: Any, name: str = "stream.yaml", **changes: Any) -> Path:
    values = settings(**{"model": {"kind": "causal", "name": str(folder / "model")}, **changes})
    values["method"] = "replay"
    values["stream"]["tasks"][0]["mix"] = mix
    return write_config(folder / name, values)


def read(file: Path) -> Stream:
    options = load_config(file).stream
    assert options is not None
    return load_stream(options, file.parent)


def test_a_run_records_rows_and_tokens_of_each_source(stream: Path, tmp_path: Path) -> None:
    mix = {"file": "general.jsonl", "share": 0.3}
    file = configured(stream, mix, training={"packing": "padding_free"})
    config, tasks = load_config(file), read(file).tasks
    told: list[Event] = []
    with Learner.of_config(tmp_path / "run", config, listener=told.append) as learner:
        learner.learn_stream(tasks)
        features = learner.session.backbone.features(tasks[0].train, tasks[0].spec)
        record = learner.record
    (own, mixed), (only,) = (task.trained for task in record.tasks)
    assert (own.source, own.examples, own.rows) == ("task", 12, 22 - 7)
    assert mixed.source.startswith("general.jsonl sha256:")
    assert (mixed.share, mixed.examples, mixed.rows) == (0.3, 3, 7)  # a pass of 18 rows, and a batch of the next one
    assert only.rows == 24
    sizes = sorted(feature["length"] for feature in features)
    assert sum(sizes) + sum(sizes[:3]) <= own.tokens <= sum(sizes) + sum(sizes[-3:])  # all, and 3 of them twice
    assert 7 * 5 < mixed.tokens < 7 * 30
    assert record.tasks[0].cost.examples_trained == 22
    assert record.tasks[0].memory.examples == 4
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert any("7 rows of training come from its mix, which has 3: each is read 2.3 times" in text for text in notices)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"file": "general.jsonl", "share": 0}, "share"),
        ({"file": "general.jsonl", "share": 1}, "share"),
        ({"file": "general.jsonl", "share": 0.1, "prompt": "{output}"}, "shows the answer"),
        ({"file": "absent.jsonl", "share": 0.1}, "absent.jsonl: there is no such file"),
        ({"file": "mood.json", "share": 0.1}, "mood.json: 'mix' has the same content"),
        ({"file": "broken.jsonl", "share": 0.1}, "broken.jsonl"),
        ({"file": "pairs.jsonl", "share": 0.1}, "no field 'input'; the fields are 'prompt', 'chosen', 'rejected'"),
        ({"share": 0.1}, "mix.file: missing"),
    ],
)
def test_bad_mixes_are_refused_while_reading(mix: Any, message: str, stream: Path, tmp_path: Path) -> None:
    (stream / "broken.jsonl").write_text("{", encoding="utf-8")
    (stream / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}', encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read(configured(stream, mix, "bad.yaml"))


@pytest.mark.parametrize("what", ["matcher", "joint", "preferences"])
def test_models_and_methods_without_use_for_a_mix_refuse_it(what: str, tmp_path: Path) -> None:
    values = settings()
    if what != "matcher":
        values["method"] = "joint" if what == "joint" else "replay"
        values["model"] |= {"kind": "causal", "name": str(model_folder("causal"))}
    del values["stream"]
    rows = [Example("good film", "good"), Example("bad film", "bad")]
    spec = AnswerSpec()
    if what == "preferences":
        rows = [Example("good film", "good", rejected="bad")]
        spec = AnswerSpec(dpo=DpoOptions())
    task = Task("t", rows, spec=spec, mix=Mix([Example("a", "b")], 0.1))
    with (
        Learner.open(tmp_path / "run", **values) as learner,
        pytest.raises(InputError, match=r"has (a mix|preferences and a mix)"),
    ):
        learner.learn(task)


def test_the_share_may_be_a_number_of_numpy() -> None:
    rows = [Example("a", "b")] * 9
    tasks = [Task("t", rows, mix=Mix(rows, share)) for share in (0.1, np.float64(0.1))]
    assert tasks[0].rows_per_epoch == tasks[1].rows_per_epoch == 10
    assert tasks[0].fingerprint() == tasks[1].fingerprint()


def test_a_stream_gives_its_mix_to_every_task(stream: Path) -> None:
    values = settings(model={"kind": "causal", "name": str(model_folder("causal"))})
    values["stream"]["mix"] = {"file": "general.jsonl", "share": 0.1}
    values["stream"]["tasks"][1]["mix"] = {"file": "general.jsonl", "share": 0.2}
    tasks = read(write_config(stream / "all.yaml", values)).tasks
    assert [task.mix.share for task in tasks if task.mix] == [0.1, 0.2]
    plain = Task("t", tasks[0].train)
    assert len({Task("t", plain.train, mix=mix).fingerprint() for mix in (None, tasks[0].mix, tasks[1].mix)}) == 3
