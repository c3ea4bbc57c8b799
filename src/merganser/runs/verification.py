"""Check every file of a run, make again what can be made again, and name a remedy for the rest."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from merganser.errors import InputError
from merganser.files.atomic import json_lines_bytes, make_folder, new_file, write
from merganser.files.safetensors_file import read_header
from merganser.lineage import DIGITS, read_lineage, weights_digest
from merganser.metrics.function import is_function_name, metric_name
from merganser.runs import checkpoint
from merganser.runs.checksums import CHANGED, THREADS, files_of, problem_of, sha256_of
from merganser.runs.derived import LEDGER, MODEL, OUTDATED, SCORES, derived_problems, model_files
from merganser.runs.directory import RunDirectory
from merganser.runs.findings import Finding, Verification, problem_in
from merganser.runs.links import TASKS, refuse_links
from merganser.runs.reading import read_lines
from merganser.runs.record import MergeRecord, RowFile
from merganser.runs.references import REFERENCES
from merganser.runs.removal import MARK, read_removal
from merganser.runs.rows import RECORD, read_row, read_row_record, row_folders, unfinished_rows
from merganser.runs.run_file import RUN
from merganser.runs.verified_names import check_tags, check_undone
from merganser.streams.metric_source import find_metric


def verify(directory: RunDirectory, *, repair: bool = True) -> Verification:
    """Compare every file of a run with its checksum.

    What can be made again is: ``model/`` from the last row and a row's weights from ``model/``, ``ledger.jsonl`` from
    the rows and a row's merges from ``ledger.jsonl``, and ``scores.json``.

    Args:
        directory: whose lock the caller holds, unless ``repair`` is False.
        repair: False: only report; nothing is written.

    Raises:
        InputError: a row is missing or there twice, or a link leads out of the run.
        RunError: the disk is full.
    """
    if repair:
        refuse_links(directory.path)
    verifier = _Verifier(directory, repair)
    verifier.check_rows()
    verifier.check_run_file()
    verifier.check_lineage()
    verifier.check_checkpoints()
    verifier.check_references()
    check_tags(directory.path, verifier.result)
    check_undone(directory, verifier.result)
    verifier.check_derived()
    verifier.check_metrics()
    return verifier.result


def verify_export(folder: Path) -> Verification:
    """Compare every file of an export with the hash in its lineage; its card may be edited.

    Raises:
        InputError: there is no lineage, or it is damaged.
    """
    lineage = read_lineage(folder)
    if lineage is None:
        raise InputError(f"There is neither a run nor an export in '{folder}'.", "Check the path.")
    verification = Verification()
    for name, expected in lineage.files.items():
        if problem := problem_of(folder / name, expected, again=True):
            verification.damaged.append(Finding(name, problem, "Export or download the model again."))
        else:
            verification.files += 1
            verification.bytes += (folder / name).stat().st_size
    if lineage.holds == "adapter" and weights_digest(lineage.files) != lineage.weights:
        verification.notes.append("The weights are in another number format than in the run.")
    return verification


class _Verifier:
    def __init__(self, directory: RunDirectory, repair: bool) -> None:
        self.directory = directory
        self.path = directory.path
        self.repair = repair
        self.result = Verification()
        self.folders = row_folders(self.path / TASKS)
        self.records: dict[int, RowFile] = {}
        self._again = f"merganser verify {shlex.quote(str(self.path))}"

    # -- rows -------------------------------------------------------------------------------------------------------

    def check_rows(self) -> None:
        """Check the records, then every file that they name."""
        for number, folder in enumerate(self.folders):
            try:
                self.records[number] = read_row_record(folder)
            except InputError as error:
                self._damaged(folder / RECORD, problem_in(error), self._remedy(number))
                name = self._name(folder)
                self.result.notes.append(f"The other files of {name} were not checked: {RECORD} lists them.")
        recorded = [(number, *file) for number in self.records for file in self._expected(number).items()]
        with ThreadPoolExecutor(THREADS) as pool:
            problems = pool.map(lambda file: problem_of(self.folders[file[0]] / file[1], file[2], again=True), recorded)
            for (number, name, expected), problem in zip(recorded, problems, strict=True):
                self._note_file(number, name, expected, problem)
        for number, record in self.records.items():
            self._check_others(number, record)
        for folder in unfinished_rows(self.path / TASKS):
            name = self._name(folder)
            self.result.notes.append(f"{name} was not finished; the next command that changes the run removes it.")

    def _expected(self, number: int) -> dict[str, str]:
        """Return the SHA-256 of every file that a row has, without weights that were removed to save space."""
        folder, record = self.folders[number], self.records[number]
        try:
            removal = read_removal(folder, record)
        except InputError as error:
            self._damaged(folder / MARK, problem_in(error), self._remedy(number))
            return record.sha256
        if removal is None:
            return record.sha256
        self._intact(folder / MARK)
        date = removal.removed[:10]
        self.result.notes.append(f"{self._name(folder)}: its weights were removed on {date} ({removal.reason}).")
        return {name: value for name, value in record.sha256.items() if name.split("/")[0] not in removal.parts}

    def _note_file(self, number: int, name: str, expected: str, problem: str) -> None:
        path = self.folders[number] / name
        if not problem:
            self._intact(path)
            return
        replacement = self._replacement(number, name, expected)
        if replacement is None:
            self._damaged(path, problem, self._remedy(number))
        elif not self.repair:
            self._damaged(path, problem, f"It can be made again: {self._again}.")
        else:
            make_folder(path.parent)
            with new_file(path) as temporary:
                if isinstance(replacement, Path):
                    shutil.copyfile(replacement, temporary)
                else:
                    write(temporary, replacement)
            self.result.made_again.append(Finding(self._name(path), problem))

    def _replacement(self, number: int, name: str, expected: str) -> Path | bytes | None:
        """Return the content of a file of a row, from what was made of it; ``None`` if that is not as recorded."""
        above = (self.folders[number] / name).parent
        if not above.resolve().is_relative_to(self.path.resolve()):
            return None  # a link leads out of the run
        if name.startswith("adapter/"):
            copy = self.path / MODEL / name.removeprefix("adapter/")
            return None if problem_of(copy, expected, again=True) else copy
        if name == "merges.jsonl":
            merges = self._merges(self.records[number])
            return merges if hashlib.sha256(merges).hexdigest() == expected else None
        return None

    def _merges(self, record: RowFile) -> bytes:
        """Return the lines of ``ledger.jsonl`` that are of a row's tasks; none if it cannot be read."""
        names = {task.name for task in record.tasks}
        try:
            merges = read_lines(self.path / LEDGER, MergeRecord)
        except InputError:
            return b""
        return json_lines_bytes(merge.model_dump() for merge in merges if merge.task in names)

    def _check_others(self, number: int, record: RowFile) -> None:
        """Check the record itself, files without checksums, and name what is not of the run."""
        folder = self.folders[number]
        if record.sha256:
            self._intact(folder / RECORD)
            unknown = [name for name in files_of(folder) if name not in {*record.sha256, RECORD, MARK}]
            self.result.notes += [f"{self._name(folder / name)} is not of this run; left alone." for name in unknown]
            return
        self.result.notes.append(f"{self._name(folder)} has no checksums recorded; its files were read instead.")
        for path, problem in _unreadable(folder):
            self._damaged(path, problem, self._remedy(number))

    def _remedy(self, number: int) -> str:
        copy = "Restore it from a copy of the run, or"
        if number == 0:
            return f"{copy} learn its tasks again in a new folder."
        before = self.folders[number - 1].name
        to = "" if number == len(self.folders) - 1 else f" --to {shlex.quote(before)}"
        return f"{copy} go back to '{before}': merganser undo {shlex.quote(str(self.path))}{to}."

    # -- what is beside the rows ------------------------------------------------------------------------------------

    def check_run_file(self) -> None:
        """Check ``run.yaml``, whose checksum every row has."""
        recorded = {record.run_sha256 for record in self.records.values() if record.run_sha256}
        if recorded and recorded != {sha256_of(self.path / RUN, again=True)}:
            self._damaged(self.path / RUN, CHANGED, "Restore it from a copy of the run.")
        elif recorded:
            self._intact(self.path / RUN)

    def check_lineage(self) -> None:
        """Compare what the rows were made from with the run's model and with their weights."""
        resolved = self.directory.info.config.get("resolved", {})
        model = resolved.get("model_fingerprint", "")
        for number, record in self.records.items():
            if record.lineage is None:
                continue
            weights = {name: value for name, value in record.sha256.items() if name.startswith("adapter/")}
            problem = ""
            if model and record.lineage.base.sha256 != model:
                problem = f"it was trained on {record.lineage.base.described}, the other rows on {model[:DIGITS]}"
            elif weights and weights_digest(weights) != record.lineage.weights:
                problem = "its lineage is that of other weights"
            if problem:
                self._damaged(self.folders[number] / RECORD, problem, self._remedy(number))

    def check_checkpoints(self) -> None:
        """Check the checkpoints of a task that was interrupted."""
        for folder in checkpoint.list_checkpoints(self.path):
            try:
                problem = checkpoint.damage_of(folder, again=True)
            except (OSError, ValueError) as error:
                problem = f"{checkpoint.VALUES} cannot be read ({error})"
            if problem:
                remedy = "Nothing needs to be done: the task resumes from the checkpoint before it, or starts over."
                self._damaged(folder, problem, remedy)
                continue
            for name in files_of(folder):
                self._intact(folder / name)

    def check_references(self) -> None:
        """Check ``references.json``."""
        path = self.path / REFERENCES
        try:
            self.directory.references()
        except InputError as error:
            out = shlex.quote(str(self.path))
            remedy = f"merganser run STREAM.yaml --out {out} --fwt"
            self._damaged(
                path, problem_in(error), f"Restore it from a copy of the run, or delete it and measure again: {remedy}."
            )
            return
        if path.is_file():
            self._intact(path)

    def check_derived(self) -> None:
        """Compare the files beside the rows with them, and make them again, where all rows can be read."""
        self.directory.reload()
        try:
            rows, references = self.directory.rows, self.directory.references()
        except InputError:
            what = f"{SCORES}, {LEDGER} and {MODEL}/"
            self.result.notes.append(f"{what} were not checked: what they are made from is damaged.")
            return
        if not rows:
            return
        problems = derived_problems(self.path, rows, references)
        ours = model_files(rows[-1])
        for name in (SCORES, LEDGER, *(f"{MODEL}/{name}" for name in ours)):
            if not (name in problems or MODEL in problems):
                self._intact(self.path / name)
        if MODEL not in problems:
            unknown = [name for name in files_of(self.path / MODEL) if name not in ours]
            self.result.notes += [f"{MODEL}/{name} is not of this run; left alone." for name in unknown]
        if not problems:
            return
        remedy = f"It can be made again: {self._again}."
        if self.repair:
            try:
                self.directory.refresh()
            except InputError:
                remedy = f"It can be made again when the weights in {self._name(rows[-1].folder)} are restored."
            else:
                self._note_made_again(problems)
                return
        self.result.damaged += [Finding(name, problem, remedy) for name, problem in problems.items()]

    def _note_made_again(self, problems: dict[str, str]) -> None:
        if problems.get(MODEL) == OUTDATED:  # as an interruption leaves it
            self.result.notes.append("Scores, ledger and model were brought up to date with the tasks learned.")
        elif MODEL in problems:
            self.result.notes.append(f"{MODEL} was made again: {problems[MODEL]}.")
        else:
            self.result.made_again += [Finding(name, problem) for name, problem in problems.items()]

    def check_metrics(self) -> None:
        """Note the functions that score tasks and cannot be imported: scoring will need them."""
        for record in self.records.values():
            for task in record.tasks:
                if is_function_name(task.spec.metric):
                    try:
                        find_metric(metric_name(task.spec.metric))
                    except InputError as error:
                        self.result.notes.append(f"Task '{task.name}' cannot be scored here: {error}")

    # -- reporting --------------------------------------------------------------------------------------------------

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _intact(self, path: Path) -> None:
        self.result.note_intact(path)

    def _damaged(self, path: Path, problem: str, remedy: str) -> None:
        self.result.note_damaged(self._name(path), problem, remedy)


def _unreadable(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a row without checksums that cannot be read, with the reasons."""
    try:
        row = read_row(folder)
    except InputError as error:
        yield folder / "merges.jsonl", problem_in(error)
        return
    names = [] if row.is_start else ["memory", "test", *(["dev"] if "dev" in row.file.lines else [])]
    names += ["watch"] if row.file.watched else []
    for name in names:
        try:
            row.examples(name)
        except InputError as error:
            yield folder / f"{name}.jsonl", problem_in(error)
    try:
        row.signals()
    except InputError as error:
        yield folder / "signals.jsonl", problem_in(error)
    for name in files_of(folder):
        if name.endswith(".safetensors"):
            try:
                read_header(folder / name)
            except InputError as error:
                yield folder / name, problem_in(error)
