"""A data set of the hub, read through ``datasets`` from a stand-in of the hub on the loopback address."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.streams.formats import read_hub
from tests import hub_stand_in
from tests.hub_stand_in import HubStandIn, Repository

CARD = b"""---
configs:
- config_name: plain
  default: true
  data_files:
  - {split: train, path: plain/train.jsonl}
  - {split: test, path: plain/test.jsonl}
- config_name: chat
  data_files:
  - {split: train, path: chat/train.jsonl}
dataset_info:
- config_name: plain
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': complaint, '1': praise}}}
---
"""


def _lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A stand-in with the data set ``owner/faq``: a configuration with class numbers, another with conversations."""
    import datasets.config

    with hub_stand_in.serving() as hub:
        hub_stand_in.use(hub, monkeypatch, str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        hub.repositories["datasets/owner/faq"] = repository = Repository(private=False)
        turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
        files = {
            "README.md": CARD,
            "plain/train.jsonl": _lines([{"text": f"text {i}", "label": i % 2} for i in range(4)]),
            "plain/test.jsonl": _lines([{"text": "another", "label": 0}]),
            "chat/train.jsonl": _lines([{"messages": turns}]),
        }
        repository.commit("main", files, "data")
        yield hub


def test_splits_and_configurations_are_read_with_their_class_names(hub: HubStandIn) -> None:
    train = read_hub("hub:owner/faq", "train")
    assert [(row["text"], row["label"]) for row in train.rows] == [
        ("text 0", "complaint"),
        ("text 1", "praise"),
        ("text 2", "complaint"),
        ("text 3", "praise"),
    ]
    assert [row["text"] for row in read_hub("hub:owner/faq:plain:test", "train").rows] == ["another"]
    assert len(read_hub("hub:owner/faq:train[:3]", "train").rows) == 3
    chat = read_hub("hub:owner/faq:chat", "train")
    assert [turn["content"] for turn in chat.rows[0]["messages"]] == ["Hello?", "Hello."]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:owner/faq:plain:dev", "Unknown split"),
        ("hub:owner/faq:tables", "BuilderConfig 'tables' not found"),
        ("hub:owner/fax", "fax"),
    ],
)
def test_what_the_data_set_does_not_have_is_named(source: str, message: str, hub: HubStandIn) -> None:
    with pytest.raises(InputError, match=message):
        read_hub(source, "train")
