"""Every file of a run is checked: damage is found wherever it is, and what can be made again is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from merganser.errors import InputError
from merganser.runs import RunDirectory
from merganser.runs.checkpoint import FOLDER, CheckpointFolder
from merganser.runs.checksums import CHANGED
from merganser.runs.findings import Verification
from merganser.runs.verification import verify
from tests.learner import toys
from tests.learner.toys import contents, flip_bit
from tests.runs.test_checkpoint import write as write_checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two tasks and references, which was interrupted in the third."""
    run = toys.copy_of_trained(tmp_path / "work")
    directory = RunDirectory.open(run)
    directory.write_references({"mood": directory.rows[1].file.scores.scores["mood"]})
    write_checkpoints(run, 1, 2)
    return run


def files_of(run: Path) -> list[str]:
    names = [name for name, content in contents(run).items() if content is not None]
    assert len(names) > 25
    return names


def has_copy(run: Path, name: str) -> bool:
    """Whether another file of the run has the content: the weights in use, and the configuration of all weights."""
    if name.startswith("tasks/02-topic/adapter/") or name.endswith("adapter_config.json"):
        return True
    return name.startswith(("model/", "ledger.jsonl", "scores.json")) or name.endswith("merges.jsonl")


def checked(run: Path, repair: bool = True) -> Verification:
    return verify(RunDirectory.open(run), repair=repair)


def test_a_whole_run_is_left_as_it_is(run: Path) -> None:
    before = contents(run)
    found = checked(run)
    assert (found.damaged, found.made_again, found.notes) == ([], [], [])
    assert found.files == len(files_of(run))
    assert found.bytes == sum(len(content) for content in before.values() if content is not None)
    assert contents(run) == before


def test_a_flipped_bit_is_found_in_every_file(run: Path) -> None:
    """And nowhere else; what has a copy in the run is made again, bit for bit."""
    before = contents(run)
    for name in files_of(run):
        if name.startswith("tasks/01-mood") and not name.endswith("row.json"):
            continue  # as in the last row
        flip_bit(run / name, b"system: " if name == "run.yaml" else 0.405)
        reported = name.rpartition("/")[0] if name.startswith("checkpoint/") else name
        found = checked(run)
        if has_copy(run, name):
            assert found.damaged == []
            assert [finding.file for finding in found.made_again] == [name]
        else:
            assert [finding.file for finding in found.damaged] == [reported]
            assert found.damaged[0].remedy
            assert found.made_again == []
            (run / name).write_bytes(before[name] or b"")
        assert contents(run) == before, name


def test_a_record_that_no_longer_fits_has_changed(run: Path) -> None:
    """What the change led to (a list in place of a number, say) is not what a person has to know."""
    path = run / "tasks" / "02-topic" / "row.json"
    path.write_text(path.read_text().replace('"row": 2', '"row": [2]'))
    found = checked(run)
    assert [(finding.file, finding.problem) for finding in found.damaged] == [("tasks/02-topic/row.json", CHANGED)]


def test_a_file_beside_the_model_is_named_and_kept(run: Path) -> None:
    whole = checked(run).files
    (run / "model" / "notes.txt").write_text("mine")
    found = checked(run)
    assert (found.files, found.notes) == (whole, ["model/notes.txt is not of this run; left alone."])
    assert (run / "model" / "notes.txt").read_text() == "mine"


def test_only_reported(run: Path) -> None:
    names = [name for name in files_of(run) if name.startswith("tasks/") and not name.endswith("row.json")]
    for name in names:
        flip_bit(run / name)
    before = contents(run)
    found = checked(run, repair=False)
    assert {finding.file for finding in found.damaged} == set(names)
    assert {finding.remedy for finding in found.damaged if has_copy(run, finding.file)} == {
        f"It can be made again: merganser verify {run}."
    }
    assert contents(run) == before


def test_a_missing_file_is_found_in_every_row(run: Path) -> None:
    names = [name for name in files_of(run) if name.startswith("tasks/") and not name.endswith("row.json")]
    for name in names:
        (run / name).unlink()
    found = checked(run)
    assert {finding.problem for finding in [*found.damaged, *found.made_again]} == {"it is missing"}
    assert {finding.file for finding in found.made_again} == {name for name in names if has_copy(run, name)}
    assert {finding.file for finding in found.damaged} == {name for name in names if not has_copy(run, name)}


def test_remedies_say_how_far_to_go_back(run: Path) -> None:
    for name in ("00-start/adapter/adapter_model.safetensors", "01-mood/memory.jsonl", "02-topic/signals.jsonl"):
        flip_bit(run / "tasks" / name)
    first, second, third = (finding.remedy for finding in checked(run).damaged)
    copy = "Restore it from a copy of the run, or"
    assert first == f"{copy} learn its tasks again in a new folder."
    assert second == f"{copy} go back to '00-start': merganser undo {run} --to 00-start."
    assert third == f"{copy} go back to '01-mood': merganser undo {run}."


def test_weights_damaged_in_both_places_are_not_copied(run: Path) -> None:
    for place in ("tasks/02-topic/adapter", "model"):
        flip_bit(run / place / "adapter_model.safetensors")
    before = contents(run)
    found = checked(run)
    assert [finding.file for finding in found.damaged] == [
        "tasks/02-topic/adapter/adapter_model.safetensors",
        "model/adapter_model.safetensors",
    ]
    assert found.damaged[1].remedy == "It can be made again when the weights in tasks/02-topic are restored."
    assert contents(run) == before
    with pytest.raises(InputError, match=r"02-topic/adapter/adapter_model.safetensors' is damaged: its content has"):
        RunDirectory.open(run).refresh()
    assert contents(run) == before


def test_what_an_interruption_leaves_is_no_damage(run: Path) -> None:
    (run / "model").rename(run / "model.old.partial")
    found = checked(run)
    assert (found.damaged, found.made_again) == ([], [])
    assert found.notes == ["Scores, ledger and model were brought up to date with the tasks learned."]
    (run / "tasks" / "03-truth.partial").mkdir()
    assert checked(run).notes == [
        "tasks/03-truth.partial was not finished; the next command that changes the run removes it."
    ]


def test_a_run_without_checksums_is_read(run: Path) -> None:
    toys.without_checksums(run)
    found = checked(run)
    assert found.damaged == []
    assert [note.split(" ", 1) for note in found.notes] == [
        [f"tasks/{name}", "has no checksums recorded; its files were read instead."]
        for name in ("00-start", "01-mood", "02-topic")
    ]
    for name in ("memory.jsonl", "signals.jsonl", "adapter/adapter_model.safetensors"):
        file = run / "tasks" / "01-mood" / name
        file.write_bytes(file.read_bytes()[:-3])
    assert [finding.file.removeprefix("tasks/01-mood/") for finding in checked(run).damaged] == [
        "memory.jsonl",
        "signals.jsonl",
        "adapter/adapter_model.safetensors",
    ]


def test_files_of_a_person_are_named_and_left_alone(run: Path) -> None:
    for name in ("tasks/.DS_Store", "tasks/01-mood/.DS_Store", "tasks/01-mood/notes.txt", "tasks/x.partial"):
        (run / name).write_text("mine")
    before = contents(run)
    found = checked(run)
    assert found.notes == ["tasks/01-mood/notes.txt is not of this run; left alone."]
    assert (found.damaged, found.made_again) == ([], [])
    assert contents(run) == before


def test_nothing_is_restored_through_a_link(run: Path, tmp_path: Path) -> None:
    weights = run / "tasks" / "02-topic" / "adapter"
    shutil.move(weights, tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert checked(run).damaged == []  # a link may be read
    flip_bit(tmp_path / "elsewhere" / "adapter_model.safetensors")
    before = contents(tmp_path / "elsewhere")
    assert [finding.file for finding in checked(run).damaged] == ["tasks/02-topic/adapter/adapter_model.safetensors"]
    assert contents(tmp_path / "elsewhere") == before


# Files are checked when they are read --------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_when_a_row_is_read(run: Path) -> None:
    before = contents(run)
    for name in files_of(run):
        if not name.startswith("tasks/"):
            continue
        flip_bit(run / name, 0.6)
        row, _, part = name.removeprefix("tasks/").partition("/")

        def read(row: str = row, part: str = part) -> None:
            found = next(each for each in RunDirectory.open(run).rows if each.folder.name == row)
            if part == "signals.jsonl":
                found.signals()
            elif part == "answers.jsonl":
                found.answers()
            elif part in ("memory.jsonl", "test.jsonl"):
                found.examples(part.removesuffix(".jsonl"))
            elif "/" in part:  # row.json and merges.jsonl are read with the row
                found.checked(part.partition("/")[0])

        with pytest.raises(InputError, match="is damaged") as raised:
            read()
        assert str(run / name) in str(raised.value)
        (run / name).write_bytes(before[name] or b"")
        read()


def test_a_run_file_that_has_changed(run: Path) -> None:
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace("learning_rate: 0.02", "learning_rate: 0.03"))
    with pytest.raises(InputError, match=r"run\.yaml' is damaged: its content has changed"):
        RunDirectory.open(run).rows  # noqa: B018


def test_a_flipped_bit_is_found_in_every_file_of_a_checkpoint(run: Path) -> None:
    from tests.runs.test_checkpoint import IDENTITY

    folder = run / FOLDER / "01-step-000002"
    before = contents(run)
    for name in ("checkpoint.json", "tensors.safetensors", "trainer_state.json"):
        shutil.copytree(run, run.parent / name)
        for position in (0.3, 0.95):
            shutil.rmtree(run.parent / name)
            shutil.copytree(run, run.parent / name)
            flip_bit(run.parent / name / folder.relative_to(run) / name, position)
            found, notes = CheckpointFolder(run.parent / name, 1, IDENTITY).latest()
            assert found is not None
            assert found.step == 1, (name, position)
            assert len(notes) == 1
    assert contents(run) == before
