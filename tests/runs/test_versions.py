"""Tags, what undo keeps, and weights that are removed to save space."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.files import atomic
from merganser.runs import RunDirectory
from merganser.runs.directory import RunDirectory as Directory
from merganser.runs.keep_weights import keep_weights, kept_positions
from merganser.runs.names import check_new_name, delete_tag, tag_row
from merganser.runs.options import Keep, RunsOptions
from merganser.runs.removal import MARK, WEIGHTS
from merganser.runs.rows import read_row_record, row_checksums, write_row_record
from merganser.runs.tags import TAGS
from merganser.runs.undo import discard_undone, undo_rows
from merganser.runs.verification import verify
from tests.faults import check_same, content_of
from tests.learner.toys import contents, flip_bit
from tests.runs.test_directory import INFO, write_row


def sealed_row(directory: Directory, number: int, task: str | None, extra: str = "") -> Path:
    """A row's folder with checksums, not yet committed."""
    folder = write_row(directory, number, task, {"a": 0.5 + number / 10})
    for part in ("trained", "method"):
        (folder / part).mkdir()
        (folder / part / "state").write_text(f"{part} {number}{extra}")
    sha256, run_sha256 = row_checksums(folder)
    record = read_row_record(folder).model_copy(update={"sha256": sha256, "run_sha256": run_sha256})
    write_row_record(folder, record)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of rows 0, a, b, c, all with checksums."""
    found = RunDirectory.create(tmp_path_factory.mktemp("versions") / "run", INFO)
    for number, task in enumerate([None, "a", "b", "c"]):
        found.commit_row(sealed_row(found, number, task))
    found.lock.release()
    return found.path


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(Path(shutil.copytree(made, tmp_path / "run")))


def names(directory: RunDirectory) -> list[str]:
    return [row.folder.name for row in directory.rows]


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_row_is_found_by_folder_task_tag_and_short_name(directory: RunDirectory) -> None:
    assert tag_row(directory, "release-1", "a").folder.name == "01-a"
    assert tag_row(directory, "newest").folder.name == "03-c"
    found = {name: directory.find(name).file.row for name in ("02-b", "b", "release-1", "newest", "start", "00-start")}
    assert found == {"02-b": 2, "b": 2, "release-1": 1, "newest": 3, "start": 0, "00-start": 0}
    with pytest.raises(InputError, match=r"no row 'releese-1' in .* Did you mean 'release-1'"):
        directory.find("releese-1")
    assert delete_tag(directory, "release-1").folder.name == "01-a"
    assert list(directory.tags()) == ["newest"]
    with pytest.raises(InputError, match=r"There is no tag 'nothing' in .*Tags: newest"):
        delete_tag(directory, "nothing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two words", "Tag 'two words' is none: use letters"),
        ("../out", "Tag '../out' is none"),
        ("x.partial", "ends with '.partial'"),
        ("b", "'b' names a row already"),
        ("start", "'start' names a row already"),
        ("07-later", "'07-later' names a row already"),
        ("taken", "There is a tag 'taken' of '03-c'"),
        ("c-undone", "'c-undone' is what undo has kept"),
        ("c", "'c' names a row already"),  # which undo has kept
    ],
)
def test_names_that_no_tag_can_have(name: str, message: str, directory: RunDirectory) -> None:
    if name in ("c", "c-undone"):
        undo_rows(directory, keep=True)
    else:
        tag_row(directory, "taken")
    before = contents(directory.path)
    with pytest.raises(InputError, match=message.replace(".", r"\.").replace("(", r"\(")):
        tag_row(directory, name)
    assert contents(directory.path) == before


def test_a_new_task_has_a_name_of_its_own(directory: RunDirectory) -> None:
    tag_row(directory, "release")
    undo_rows(directory, keep=True)
    tag_row(directory, "older")
    for name in ("older", "c-undone"):
        with pytest.raises(InputError):
            check_new_name(directory, name)
    check_new_name(directory, "release")  # it went with its row


def test_the_run_as_it_was_after_a_row(directory: RunDirectory) -> None:
    tag_row(directory, "early", "b")
    earlier = directory.up_to("early")
    assert names(earlier) == ["00-start", "01-a", "02-b"]
    earlier.reload()
    assert [task.name for task in earlier.record().tasks] == ["a", "b"]
    with pytest.raises(InputError, match="is the row before any training"):
        directory.up_to("00-start")


def test_a_tag_never_names_another_row(directory: RunDirectory) -> None:
    """The row is lost and learned again otherwise: a tag written before is not that of the new one."""
    tag_row(directory, "mine")
    tags = (directory.path / TAGS).read_bytes()
    undo_rows(directory)
    (directory.path / TAGS).write_bytes(tags)
    assert any("Tag 'mine' is that of a row '03-c' which is not there" in note for note in verify(directory).notes)
    with directory.lock:
        directory.commit_row(sealed_row(directory, 3, "c", " again"))
    assert directory.tags() == {}
    flip_bit(directory.path / TAGS, b'"row": "')
    assert [found.file for found in verify(directory).damaged] == [TAGS]


# Undo ----------------------------------------------------------------------------------------------------------------


def test_undo_goes_back_to_a_tag_and_takes_those_of_later_rows_away(directory: RunDirectory) -> None:
    for name, row in (("first", "a"), ("second", "b"), ("third", "c")):
        tag_row(directory, name, row)
    result = undo_rows(directory, "first")
    assert (result.removed, result.tags, result.kept_as) == (["b", "c"], ["second", "third"], None)
    assert names(directory) == ["00-start", "01-a"]
    assert list(directory.tags()) == ["first"]


def test_what_is_kept_comes_back_as_it_was(directory: RunDirectory) -> None:
    tag_row(directory, "good")
    before = contents(directory.path)
    result = undo_rows(directory, "a", keep=True)
    assert (result.removed, result.tags, result.kept_as) == (["b", "c"], ["good"], "b-undone")
    assert (names(directory), directory.tags()) == (["00-start", "01-a"], {})
    assert verify(directory).damaged == []
    with directory.lock:
        directory.commit_row(sealed_row(directory, 2, "b", " otherwise"))
    between = contents(directory.path)
    with pytest.raises(InputError, match=r"Going back to 'b-undone' would take away b, learned since\. Add --keep"):
        undo_rows(directory, "b-undone")
    assert contents(directory.path) == between
    back = undo_rows(directory, "b-undone", keep=True)
    assert (back.removed, back.restored, back.tags_restored) == (["b"], ["b", "c"], ["good"])
    assert back.kept_as == "b-undone-2"
    assert discard_undone(directory, "b-undone-2") == ["02-b"]
    (directory.path / "undone").rmdir()
    assert contents(directory.path) == before


def test_what_follows_a_row_that_is_gone_waits_for_it(directory: RunDirectory) -> None:
    undo_rows(directory, keep=True)
    undo_rows(directory, keep=True)
    assert sorted(directory.undone()) == ["b-undone", "c-undone"]
    with pytest.raises(InputError, match="'c-undone' follows a row '02-b' that is not in the run any more"):
        undo_rows(directory, "c-undone")
    assert undo_rows(directory, "b-undone").restored == ["b"]
    assert undo_rows(directory, "c-undone").restored == ["c"]
    assert (names(directory)[-1], directory.undone()) == ("03-c", {})
    with pytest.raises(InputError, match="Undo has kept no 'c-undone'"):
        discard_undone(directory, "c-undone")


def test_damage_of_what_is_kept_is_found(directory: RunDirectory) -> None:
    undo_rows(directory, keep=True)
    flip_bit(directory.path / "undone" / "c-undone" / "03-c" / "adapter" / "weights")
    before = contents(directory.path)
    assert [found.file for found in verify(directory).damaged] == ["undone/c-undone/03-c/adapter/weights"]
    with pytest.raises(InputError, match="is damaged"):
        undo_rows(directory, "c-undone")
    assert contents(directory.path) == before


def test_what_undo_has_kept_was_learned(directory: RunDirectory) -> None:
    undo_rows(directory, "00-start", keep=True)
    assert (names(directory), directory.has_learned()) == (["00-start"], True)
    discard_undone(directory, "a-undone")
    assert not directory.has_learned()


def test_rows_without_their_record_are_not_replaced(directory: RunDirectory) -> None:
    undo_rows(directory, keep=True)
    (directory.path / "undone" / "c-undone" / "undone.json").unlink()
    with directory.lock:
        directory.commit_row(sealed_row(directory, 3, "c", " again"))
    before = contents(directory.path)
    assert [found.file for found in verify(directory).damaged] == ["undone"]
    with pytest.raises(InputError, match=r"c-undone/undone\.json' is damaged: it is missing"):
        undo_rows(directory, keep=True)
    assert contents(directory.path) == before


class Killed(BaseException):
    """Nothing handles it."""


def stopped_anywhere(run: Path, work: Callable[[RunDirectory], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop work at every rename and every deletion, do it again, and expect what undisturbed work leaves."""
    left = -1

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def counting(*args: object, **options: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            call(*args, **options)

        return counting

    def do(folder: Path) -> None:
        directory = RunDirectory.open(folder)
        with directory.lock:
            directory.repair()
            work(directory)
            directory.tidy()

    monkeypatch.setattr(atomic.os, "replace", counted(atomic.os.replace))
    monkeypatch.setattr(atomic.shutil, "rmtree", counted(atomic.shutil.rmtree))
    expected = Path(shutil.copytree(run, run.with_name("undisturbed")))
    do(expected)
    for stop in range(1, -left):
        copy = Path(shutil.copytree(run, run.with_name(f"stopped {stop}")))
        left = stop
        with pytest.raises(Killed):
            do(copy)
        do(copy)
        left = 0
        found, undisturbed = content_of(copy), content_of(expected)
        found[TAGS] = undisturbed[TAGS]  # a tag of a row that was taken away may stand in it, and names nothing
        check_same(found, undisturbed, copy.name)
        assert list(RunDirectory.open(copy).tags()) == list(RunDirectory.open(expected).tags())


def test_an_undo_that_keeps_survives_any_interruption(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    tag_row(directory, "good")

    def work(found: RunDirectory) -> None:
        if names(found)[-1] != "01-a":
            undo_rows(found, "a", keep=True)

    stopped_anywhere(directory.path, work, monkeypatch)


def test_a_tag_that_was_given_after_an_interruption_is_kept(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[None] = []
    replace = atomic.os.replace

    def twice(*args: Path) -> None:
        if len(done) == 2:
            raise Killed
        done.append(replace(*args))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", twice)
        with pytest.raises(Killed):
            undo_rows(directory, "a", keep=True)
    directory.reload()
    assert (names(directory)[-1], [row.name for row in directory.undone()["b-undone"].rows]) == ("02-b", ["03-c"])
    tag_row(directory, "between")
    assert undo_rows(directory, "a", keep=True).kept_as == "b-undone"
    assert undo_rows(directory, "b-undone").tags_restored == ["between"]
    assert (names(directory)[-1], list(directory.tags())) == ("03-c", ["between"])


def test_going_back_survives_any_interruption(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    tag_row(directory, "good")
    undo_rows(directory, "a", keep=True)

    def work(found: RunDirectory) -> None:
        if names(found)[-1] != "03-c":
            undo_rows(found, "b-undone")
        assert list(found.tags()) == ["good"]

    stopped_anywhere(directory.path, work, monkeypatch)


# Weights that are not kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "kept"), [("all", {0, 1, 2, 3, 4}), (1, {0, 1, 4}), (2, {0, 1, 3, 4}), (9, {0, 1, 2, 3, 4})]
)
def test_which_rows_keep_their_weights(keep: Keep, kept: set[int]) -> None:
    assert kept_positions(5, keep, tagged=[1]) == kept
    assert kept_positions(5, "tagged", tagged=[1]) == {0, 1, 4}


def test_the_default_depends_on_what_is_trained() -> None:
    assert RunsOptions().kept(whole_weights=False, per_task_models=False) == "all"
    assert RunsOptions().kept(whole_weights=True, per_task_models=False) == 2
    assert RunsOptions(keep_weights="tagged").kept(whole_weights=True, per_task_models=False) == "tagged"
    assert RunsOptions(keep_weights=1).kept(whole_weights=True, per_task_models=True) == "all"


def test_removed_weights_are_no_damage_and_cannot_be_asked_for(directory: RunDirectory) -> None:
    tag_row(directory, "good", "a")
    assert keep_weights(directory, 1) == ["02-b"]
    assert keep_weights(directory, 1) == []
    assert [row.has_weights for row in directory.rows] == [True, True, False, True]
    row = directory.rows[2]
    assert not any((row.folder / part).exists() for part in WEIGHTS)
    for part in WEIGHTS:
        with pytest.raises(InputError, match=r"The weights of '02-b' were removed .*\(runs\.keep_weights: 1\)"):
            row.checked(part)
    assert [kept.task for kept in row.examples("memory")] == ["b"]
    found = verify(directory)
    assert (found.damaged, found.made_again) == ([], [])
    assert any("tasks/02-b: its weights were removed on" in note for note in found.notes)
    before = contents(directory.path)
    for act in (lambda: undo_rows(directory), lambda: undo_rows(directory, "b"), lambda: tag_row(directory, "x", "b")):
        with pytest.raises(InputError, match="Rows with weights: 00-start, 01-a, 03-c"):
            act()
    assert contents(directory.path) == before
    assert undo_rows(directory, "good").removed == ["b", "c"]


def test_missing_weights_without_their_mark_are_damage(directory: RunDirectory) -> None:
    keep_weights(directory, 2)
    shutil.rmtree(directory.path / "tasks" / "02-b" / "adapter")
    flip_bit(directory.path / "tasks" / "01-a" / MARK, b'"reason": "')
    damaged = {found.file for found in verify(directory).damaged}
    assert {"tasks/02-b/adapter/weights", f"tasks/01-a/{MARK}"} <= damaged


def test_a_part_that_the_method_reads_stays(directory: RunDirectory) -> None:
    keep_weights(directory, "tagged", parts=["adapter", "method"])
    assert (directory.rows[2].checked("trained") / "state").is_file()
    assert [row.has_weights for row in directory.rows] == [True, False, False, True]


def test_removal_survives_any_interruption(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(found: RunDirectory) -> None:
        keep_weights(found, 2)

    tag_row(directory, "good", "b")
    stopped_anywhere(directory.path, work, monkeypatch)
