"""Push a run to a stand-in of the hub, and read it back."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from merganser import Example, Learner, Task
from merganser.checkpoints.source import locate
from merganser.errors import InputError, MerganserError, RunError
from merganser.learner.exported import ExportedModel
from merganser.learner.hub_repository import HubRepository
from merganser.learner.push import PushOptions, PushResult, push, revision_name
from merganser.lineage import Lineage, read_lineage
from merganser.models.base import Lengths
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.models.source import ModelSource
from merganser.runs import RunDirectory
from merganser.runs.names import delete_tag, tag_row
from merganser.runs.undo import undo_rows
from merganser.streams.answers import AnswerSpec
from tests import hub_stand_in
from tests.hub_stand_in import TOKEN, HubStandIn
from tests.learner import toys

REPO = "acme/support"

Push = Callable[..., PushResult]


@pytest.fixture(scope="module")
def server() -> Iterator[HubStandIn]:
    with hub_stand_in.serving() as hub:
        yield hub


@pytest.fixture
def hub(server: HubStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubStandIn:
    server.reset()
    hub_stand_in.use(server, monkeypatch, str(tmp_path / "hub"))
    monkeypatch.setattr("merganser.files.hub.time.sleep", lambda seconds: None)
    return server


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.copy_of_trained(tmp_path_factory.mktemp("push"))


@pytest.fixture(scope="module")
def exports(trained: Path) -> Callable[[str, bool], Path]:
    """Exports of the run after a task, each made once."""

    @functools.cache
    def exported(after: str, merged: bool) -> Path:
        folder = trained.parent / f"{after}-{merged}"
        with Learner.open(trained, read_only=True) as learner:
            learner.export(folder, after=after, merged=merged)
        return folder

    return exported


@pytest.fixture
def exported_before(exports: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a push find its exports made: what is tested comes after."""

    class Exporter:
        def export(self, out: Path, *, merged: bool, base_model: str | None, after: str) -> Lineage | None:
            shutil.copytree(exports(after, merged), out)
            return read_lineage(out)

    opener = SimpleNamespace(open=lambda *args, **options: Exporter())
    monkeypatch.setattr("merganser.learner.push.Learner", opener)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def pushed(hub: HubStandIn, trained: Path, said: list[str]) -> Push:
    """Pushes the trained run, which must stay as it is."""

    def call(run: Path = trained, **options: object) -> PushResult:
        before = toys.contents(run)
        try:
            return push(run, REPO, PushOptions(**options), said.append)  # type: ignore[arg-type]
        finally:
            assert toys.contents(run) == before
            assert TOKEN not in "\n".join(said)

    return call


def answers(model: ExportedModel | Learner, *tasks: str) -> list[tuple[str, float]]:
    texts = ["the team won the match", "great film with a strong story"]
    return [(answer.text, round(answer.score, 5)) for task in tasks for answer in model.predict(texts, task)]


def test_one_revision_per_task_is_pushed_and_read_back(hub: HubStandIn, pushed: Push, trained: Path) -> None:
    result = pushed()
    repository = hub.repositories[REPO]
    assert list(result.pushed) == ["mood", "topic"]
    assert repository.history() == ["initial commit", "Learn mood", "Learn topic"]
    assert repository.tags == result.pushed
    assert repository.branches == {"main": result.pushed["topic"]}
    files = repository.commits[repository.tags["mood"]]
    assert (
        files["adapter_model.safetensors"] == (trained / "tasks/01-mood/adapter/adapter_model.safetensors").read_bytes()
    )
    assert {"README.md", "lineage.json", "labels.json", "tokenizer.json", ".gitattributes"} < set(files)
    assert TOKEN.encode() not in b"".join(b"".join(commit.values()) for commit in repository.commits.values())

    base = {"model_path": str(toys.model_folder())}
    earlier = ExportedModel.open(f"{REPO}@mood", **base)
    assert earlier.learned == ["mood"]
    with Learner.open(trained, read_only=True) as learner:
        assert answers(ExportedModel.open(REPO, **base), "mood", "topic") == answers(learner, "mood", "topic")

    again = pushed()
    assert (again.pushed, again.already) == ({}, ["mood", "topic"])
    assert len(repository.commits) == 3


@pytest.mark.usefixtures("exported_before")
def test_only_what_is_new_is_pushed(hub: HubStandIn, pushed: Push, tmp_path: Path) -> None:
    run = toys.copy_of_trained(tmp_path / "work")
    assert pushed(run, revision="topic", merged=True).pushed.keys() == {"topic"}
    assert pushed(run, merged=True).pushed.keys() == {"mood"}  # later, beside main
    repository = hub.repositories[REPO]
    assert repository.history() == ["initial commit", "Learn topic"]
    assert repository.branches.keys() == {"main"}
    assert ExportedModel.open(REPO, revision="mood").learned == ["mood"]  # a whole model needs no base
    with pytest.raises(InputError, match=r"holds what the run .* has not: whole models, not adapters"):
        pushed(run)


@pytest.mark.usefixtures("exported_before")
def test_tags_of_the_run_are_tags_on_the_hub(hub: HubStandIn, pushed: Push, tmp_path: Path) -> None:
    run = toys.copy_of_trained(tmp_path / "work")
    directory = RunDirectory.open(run)
    with directory.lock:
        tag_row(directory, "release", "mood")
    assert list(pushed(run).pushed) == ["mood", "topic"]
    repository = hub.repositories[REPO]
    assert repository.tags["release"] == repository.tags["mood"] != repository.tags["topic"]
    assert repository.history() == ["initial commit", "Learn mood", "Learn topic"]
    with directory.lock:
        tag_row(directory, "newest", "topic")
    again = pushed(run, revision="newest")  # a name for a commit that is there
    assert (again.pushed, len(repository.commits)) == ({"topic": repository.tags["topic"]}, 3)
    assert repository.tags["newest"] == repository.tags["topic"]
    with directory.lock:
        delete_tag(directory, "release")
        tag_row(directory, "release", "topic")
    with pytest.raises(InputError, match="a revision 'release' of another model than the run's tag"):
        pushed(run)
    assert repository.tags["release"] == repository.tags["mood"]
    pushed(run, replace=True)
    assert repository.tags["release"] == repository.tags["topic"]


def test_a_dry_run_changes_nothing(hub: HubStandIn, pushed: Push) -> None:
    result = pushed(dry_run=True)
    assert (list(result.pushed), result.created) == (["mood", "topic"], True)
    assert not hub.repositories
    assert not [request for request in hub.requests if not request.startswith(("GET", "HEAD"))]


@pytest.mark.usefixtures("exported_before")
def test_an_undone_task_is_not_overwritten_without_being_asked(hub: HubStandIn, pushed: Push, tmp_path: Path) -> None:
    run = toys.copy_of_trained(tmp_path / "work")
    pushed(run)
    repository = hub.repositories[REPO]
    before = dict(repository.branches), dict(repository.tags)
    directory = RunDirectory.open(run)
    with directory.lock:
        undo_rows(directory)
    with pytest.raises(InputError, match=r"task 'topic', undone in the run since.*--replace"):
        pushed(run)
    assert before == (repository.branches, repository.tags)
    pushed(run, replace=True)
    main = repository.commits[repository.branches["main"]]
    mood = repository.commits[repository.tags["mood"]]
    assert main["adapter_model.safetensors"] == mood["adapter_model.safetensors"]
    assert repository.history() == ["initial commit", "Learn mood", "Learn topic", "Learn mood"]  # nothing is rewritten
    assert repository.tags == before[1]
    assert pushed(run).pushed == {}


@pytest.mark.usefixtures("exported_before")
def test_a_tag_of_another_model_is_moved_only_when_asked(hub: HubStandIn, pushed: Push) -> None:
    pushed()
    repository = hub.repositories[REPO]
    repository.tags["mood"] = repository.tags["topic"]
    with pytest.raises(InputError, match="a revision 'mood' that is not the run's task"):
        pushed()
    pushed(replace=True)
    main, mood = (repository.commits[commit] for commit in (repository.tags["topic"], repository.tags["mood"]))
    assert main["lineage.json"] != mood["lineage.json"]
    assert b'"topic"' not in mood["lineage.json"]
    assert repository.history()[-1] == "Learn topic"


def test_a_repository_of_something_else_is_left_alone(hub: HubStandIn, pushed: Push) -> None:
    hub.repositories[REPO] = repository = hub_stand_in.Repository(private=False)
    repository.commit("main", {"model.safetensors": b"", "README.md": b""}, "another model")
    with pytest.raises(InputError, match=r"files that Merganser has not pushed \(model.safetensors\)"):
        pushed()
    with pytest.raises(InputError, match="is public, and --private"):
        pushed(private=True)
    assert len(repository.commits) == 1


@pytest.mark.usefixtures("exported_before")
def test_a_private_repository(hub: HubStandIn, pushed: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(private=True, message="Version 1")
    assert hub.repositories[REPO].private
    assert hub.repositories[REPO].history() == ["initial commit", "Version 1", "Version 1"]
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(
        InputError, match=r"cannot be read from the hub: the hub asks for a valid login \(401\).*HF_TOKEN"
    ):
        ExportedModel.open(REPO)


LOG_IN, RIGHTS = "hf auth login", "Use a token that may write"

FAILURES = [
    ("GET", "api/models/acme", 401, LOG_IN),
    ("POST", "api/repos/create", 401, LOG_IN),
    ("POST", "api/repos/create", 403, RIGHTS),
    ("POST", "commit/main", 403, RIGHTS),
    ("POST", "commit/main", 412, "was changed at the same time"),
    ("POST", "preupload", None, "connection to the hub failed"),
    ("PUT", "lfs/", None, "connection to the hub failed"),
    ("POST", "commit/main", None, "connection to the hub failed"),
    ("POST", "tag/", 500, "the hub failed"),
]


@pytest.mark.usefixtures("exported_before")
@pytest.mark.parametrize(("method", "path", "status", "remedy"), FAILURES)
def test_a_push_that_fails_continues_later(
    method: str, path: str, status: int | None, remedy: str, hub: HubStandIn, pushed: Push
) -> None:
    # After the first task, where that can be.
    after = {"commit/main": 1, "tag/": 1, "preupload": 1, "lfs/": 2}.get(path, 0)
    hub.fail(method, path, status, times=100, after=after)
    with pytest.raises(MerganserError) as failed:
        pushed()
    assert remedy in str(failed.value)
    if after:
        assert "Pushed before: 'mood'." in failed.value.cause
        assert "The same command continues with 'topic'" in failed.value.remedy
        assert list(hub.repositories[REPO].tags) == ["mood"]
    hub.failures.clear()
    assert list(pushed().pushed) == (["topic"] if after else ["mood", "topic"])
    assert hub.repositories[REPO].history() == ["initial commit", "Learn mood", "Learn topic"]


@pytest.mark.usefixtures("exported_before")
def test_a_busy_hub_is_waited_for(hub: HubStandIn, pushed: Push, said: list[str]) -> None:
    hub.fail("POST", "api/repos/create", 429, times=2, headers={"Retry-After": "7"})
    assert list(pushed().pushed) == ["mood", "topic"]
    assert said[:2] == [
        "The hub is busy (429); trying again in 7 seconds (2 of 5).",
        "The hub is busy (429); trying again in 7 seconds (3 of 5).",
    ]
    hub.fail("GET", "api/models", 429, headers={"ratelimit": '"api";r=0;t=900'})
    with pytest.raises(RunError, match=r"too many requests of yours \(429\). Start it again in 900 seconds"):
        pushed()


@pytest.mark.parametrize(
    ("options", "why"),
    [({"revision": "moood"}, "no task 'moood'. Did you mean 'mood'"), ({}, "HF_HUB_OFFLINE is set")],
)
def test_what_is_refused_at_once(
    options: dict[str, str], why: str, hub: HubStandIn, pushed: Push, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=why):
        pushed(**options)
    with pytest.raises(InputError, match="names no repository"):
        push(tmp_path, "a/b/c", PushOptions(), print)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("task", "name"),
    [("main", "task-main"), ("a..b.", "a.b"), ("x.lock", "task-x"), ("v1.0", "v1.0"), ("0123abc", "task-0123abc")],
)
def test_names_of_revisions(task: str, name: str) -> None:
    assert revision_name(task) == name


def test_two_tasks_of_one_revision_are_refused(hub: HubStandIn, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merganser.learner.push.revision_name", lambda task: "same")
    with pytest.raises(InputError, match="Two names would be the revision 'same'"):
        push(trained, REPO, PushOptions(), print)
    assert not hub.repositories


@pytest.mark.usefixtures("hub")
def test_commits_delete_stale_files_and_replace_a_branch_left_over(server: HubStandIn, tmp_path: Path) -> None:
    hub = HubRepository(REPO, print)
    hub.create(private=False)
    (tmp_path / "new").mkdir()
    for name in ("README.md", "labels.json"):
        (tmp_path / "new" / name).write_text(name)
    hub.commit(tmp_path / "new", "first")
    (tmp_path / "new" / "labels.json").unlink()
    hub.commit(tmp_path / "new", "second", stale=["README.md", "labels.json"])
    repository = server.repositories[REPO]
    main = repository.branches["main"]
    assert "README.md" in repository.commits[main]
    assert "labels.json" not in repository.commits[main]
    repository.branches["left"] = repository.commit("other", {"x": b""}, "interrupted")
    hub.start_branch("left", hub.state())
    assert repository.branches["left"] == main


@pytest.fixture
def on_hub(hub: HubStandIn, pushed: Push) -> str:
    """The pretrained model and the pushed adapters are on the hub; the id of the model."""
    base = hub_stand_in.Repository(private=False)
    base.commit("main", {path.name: path.read_bytes() for path in toys.model_folder().iterdir()}, "the base")
    hub.repositories["acme/base"] = base
    pushed(base_model="acme/base")
    return "acme/base"


def test_a_run_begins_with_a_revision_of_the_hub(on_hub: str, hub: HubStandIn, trained: Path, tmp_path: Path) -> None:
    values = toys.settings(method="sequential")
    del values["stream"]
    values["model"] = {"name": REPO, "revision": "mood", "kind": "matcher", "precision": "fp32"}
    for number in (1, 2):  # started, and opened again as it was started
        with Learner.open(tmp_path / "run", **values) as learner:
            model = learner.session.config.model
            assert (model.name, model.adapter) == (on_hub, f"{REPO}@mood")
            if number == 1:
                examples = [Example(row["input"], row["output"]) for row in toys.rows("truth", 4)]
                learner.learn(Task("truth", examples, spec=AnswerSpec(toys.LABELS["truth"])))
    started = toys.read_json(tmp_path / "run" / "tasks" / "00-start" / "row.json")["lineage"]
    pushed_mood = toys.read_json(trained / "tasks" / "01-mood" / "row.json")["lineage"]
    assert started["weights"] == pushed_mood["weights"]
    assert started["base"]["name"] == on_hub
    assert started["base"]["revision"] == hub.repositories[on_hub].branches["main"]
    assert started["base"]["sha256"] == pushed_mood["base"]["sha256"]
    assert ExportedModel.open(REPO, revision="mood").learned == ["mood"]  # its base is found on the hub


READ = [
    (401, "hf auth login"),
    (403, "lacks the right. Use a token that may read it"),
    (429, "too many requests of yours"),
    (500, "the hub failed"),
    (None, "the connection to the hub failed"),
]


@pytest.mark.parametrize(("status", "remedy"), READ)
@pytest.mark.parametrize("read", ["model", "file", "ask", "merge"])
def test_a_hub_that_refuses_to_be_read(read: str, status: int | None, remedy: str, hub: HubStandIn) -> None:
    for path in ("acme/base", "api/models/acme"):
        for method in ("HEAD", "GET"):
            hub.fail(method, path, status, times=100)
    calls = {
        "ask": lambda: ExportedModel.open("acme/base"),
        "model": lambda: load_backbone(ModelOptions(name="acme/base", kind="matcher"), Lengths(8, 8), seed=0),
        "file": lambda: ModelSource("acme/base", "acme/base").file("adapter_config.json"),
        "merge": lambda: locate("acme/base"),
    }
    with pytest.raises(MerganserError, match=remedy):
        calls[read]()


def test_a_hub_that_stops_in_the_middle_of_a_file(on_hub: str, hub: HubStandIn) -> None:
    def load() -> None:
        load_backbone(ModelOptions(name=on_hub, kind="matcher"), Lengths(8, 8), seed=0)

    for file in ("tokenizer.json", "model.safetensors"):
        hub.fail("GET", f"/{file}", None, times=100, half=True)
        with pytest.raises(RunError, match=r"connection to the hub failed \(peer closed.*start the same command again"):
            load()
        hub.failures.clear()
    load()
