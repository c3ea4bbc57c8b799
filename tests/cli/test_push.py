"""``merganser push`` and reading back with ``merganser ask``, against a stand-in of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import hub_stand_in
from tests.hub_stand_in import TOKEN
from tests.learner import toys
from tests.learner.toys import Command, contents

REPO = "acme/support"


def test_push_and_ask(run: Path, merganser: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = contents(run)
    with hub_stand_in.serving() as hub:
        hub_stand_in.use(hub, monkeypatch, str(tmp_path / "hub"))
        dry = merganser("push", run, REPO, "--dry-run", "--private")
        assert (dry.code, hub.repositories) == (0, {})
        assert f"{REPO} would be created, private. To push: mood, topic." in dry.out

        done = merganser("push", run, REPO, "--private")
        assert done.code == 0
        assert f"{hub.address}/{REPO} has mood, topic; `merganser ask {REPO} TEXT` answers with it." in done.out
        assert "The pretrained model is a folder of this machine" in done.out
        assert f"Pushed 'mood' to {hub.address}/{REPO}/tree/mood" in done.err

        again = json.loads(merganser("push", run, REPO, "--json").out)
        assert (again["pushed"], again["already"]) == ({}, ["mood", "topic"])
        assert "Nothing is new" in merganser("push", run, REPO).out

        base = ("--model", toys.model_folder())
        asked = [merganser("ask", name, *base, "--task", "topic", "the team won") for name in (REPO, run)]
        assert asked[0].code == 0
        assert asked[0].out == asked[1].out
        absent = merganser("ask", f"{REPO}@mood", *base, "--task", "topic", "the team won")
        assert "There is no task 'topic'" in absent.error
        unknown = merganser("ask", f"{REPO}@truth", "a text")
        assert "it has no such revision (404)" in unknown.error

        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        refused = merganser("push", run, REPO)
        assert refused.code == 2
        assert "hf auth login" in refused.error
        assert TOKEN not in "".join(part.out + part.err for part in (dry, done, refused))
    assert contents(run) == before


def test_a_push_without_the_network(run: Path, merganser: Command) -> None:
    refused = merganser("push", run, REPO)
    assert (refused.code, refused.error) == (
        2,
        "HF_HUB_OFFLINE is set, so nothing can be pushed. Unset HF_HUB_OFFLINE.",
    )
