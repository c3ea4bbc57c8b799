"""Merge checkpoints on disk, into a temporary folder that is renamed when it is complete.

An interrupted merge never leaves an incomplete result folder; a hidden folder may remain, which the next merge into
the same folder removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from merganser.checkpoints.card import model_card
from merganser.checkpoints.chat_settings import dropped_settings
from merganser.checkpoints.config_file import write_config
from merganser.checkpoints.engine import load_kernels, run_jobs
from merganser.checkpoints.merged_lineage import write_merged_lineage
from merganser.checkpoints.plan import Plan, check_room, make_plan
from merganser.checkpoints.recipe import Recipe
from merganser.checkpoints.sidecar_files import copy_sidecar_files, uncopied_files
from merganser.checkpoints.source import INDEX, SINGLE, LocatedRecipe, Source
from merganser.checkpoints.streaming import Job
from merganser.checkpoints.tensor_writer import uses_direct_io
from merganser.errors import InputError, RunError
from merganser.files.atomic import StagedChanges
from merganser.files.documents import yaml_document
from merganser.files.safetensors_file import Tensor, create

RECIPE = "merge.yaml"

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room or choose another disk"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
    errno.ENOENT: "restore the missing file",
}


@dataclass
class Report:
    """The result of a merge.

    Attributes:
        out: the folder.
        tensors: how many tensors (of adapters: modules) were merged, by rule.
        buffers, kept, only_reference, left_out: see :class:`merganser.checkpoints.plan.Plan`.
        bytes: of the tensors written; of adapters, of their file.
        seconds: duration.
        compiled: whether the compiled kernels were used.
        nonfinite: tensors of the result that hold NaN or infinity.
        errors: for adapters, the truncation error per module.
        not_copied: files of the reference, other than weights, that the result lacks (code above all).
        dropped: chat templates, end-of-turn tokens and generation settings of other models that the result lacks.
        notes: what was done to weights that the models have in part or share.
    """

    out: str
    tensors: dict[str, int]
    buffers: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    only_reference: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0
    compiled: bool = False
    nonfinite: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    not_copied: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return asdict(self)


def merge_checkpoints(
    recipe: Recipe | LocatedRecipe,
    out: str | Path,
    *,
    threads: int | None = None,
    kernels: str = "auto",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Merge checkpoints into a new folder in Hugging Face layout.

    The folder has the shards, config and tokenizer of the base (of the first model without one), ``merge.yaml`` that
    repeats the merge, and a model card.

    Args:
        recipe: what to merge and how; a located one is not looked up again.
        out: folder to create.
        threads: number of threads; by default that of the processors, half as many again for a result that is written
            by direct I/O (:mod:`merganser.checkpoints.tensor_writer`). The result does not depend on it.
        kernels: ``auto``, ``numba`` or ``numpy``. The result does not depend on it.
        overwrite: replace a folder that is already there, once the new one is complete.
        progress: called with bytes written so far and bytes to write in all.

    Raises:
        InputError: see :func:`merganser.checkpoints.plan.make_plan`; ``out`` exists or cannot be written; no room; NaN.
        RunError: the disk filled up or failed during the merge; nothing is left on it.
    """
    plan = make_plan(recipe)
    not_copied = uncopied_files(plan.reference.folder, plan.reference.shards)
    dropped = dropped_from(plan)
    target = Path(out).expanduser().resolve()
    check_target(target, overwrite, input_paths(plan.located, plan))
    check_room(plan.file_bytes, existing_parent(target))
    module = load_kernels(kernels, plan.output_bytes)
    started = time.perf_counter()
    with result_folder(target) as folder:
        nonfinite = _fill(plan, folder, module, threads, progress)
    return Report(
        out=str(target),
        tensors=plan.rules,
        buffers=plan.buffers,
        kept=plan.kept,
        only_reference=plan.only_reference,
        left_out=plan.left_out,
        bytes=plan.output_bytes,
        seconds=time.perf_counter() - started,
        compiled=module is not None,
        nonfinite=nonfinite,
        not_copied=not_copied,
        dropped=dropped,
        notes=plan.notes,
    )


def dropped_from(plan: Plan) -> list[str]:
    """List settings beside the weights that models have and the result lacks; see :func:`dropped_settings`.

    Files beside a single ``.safetensors`` file need not belong to it, and are not compared.
    """
    if not plan.tokenizer.config:
        return []
    checkpoints = [plan.reference, *plan.models]
    return dropped_settings(plan.tokenizer.folder, [(c.label, c.folder) for c in checkpoints if c.config])


def _fill(
    plan: Plan,
    folder: Path,
    kernels: ModuleType | None,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Write the whole folder, and return the names of tensors that hold NaN or infinity."""
    jobs = _create_shards(plan, folder)
    total = plan.output_bytes
    done = 0

    def report(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    cpus = available_cpus()
    # Threads that write by direct I/O wait for the disk a part of the time.
    threads = threads or (cpus + cpus // 2 if uses_direct_io(total) else cpus)
    nonfinite = run_jobs(jobs, kernels, threads, plan.recipe.allow_nonfinite, report)
    _write_index(plan, folder)
    tokenizer = plan.tokenizer.folder if plan.located.tokenizer is not None else None
    copy_sidecar_files(plan.reference.folder, folder, plan.reference.shards, tokenizer)
    write_config(plan, folder / "config.json")
    write_recipe(folder, plan.located)
    (folder / "README.md").write_text(model_card(plan.recipe, notes=plan.notes), encoding="utf-8")
    write_merged_lineage(plan.located, folder)
    return nonfinite


def available_cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _create_shards(plan: Plan, folder: Path) -> list[Job]:
    """Create the shards, with headers and reserved space, and set every job's target in them."""
    targets = {}
    for shard, tensors in plan.shards.items():
        for target in create(folder / shard, tensors, plan.metadata):
            targets[target.name] = target

    def placed(target: Tensor) -> Tensor:
        whole = targets[target.name]
        return replace(target, path=whole.path, offset=whole.offset + target.offset)

    return [replace(job, target=placed(job.target)) for job in plan.jobs]


def _write_index(plan: Plan, folder: Path) -> None:
    if list(plan.shards) == [SINGLE]:
        return
    placed = {name: shard for shard, tensors in plan.shards.items() for name, _, _ in tensors}
    index = {"metadata": {"total_size": plan.output_bytes}, "weight_map": dict(sorted(placed.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_recipe(folder: Path, located: LocatedRecipe) -> None:
    """Write ``merge.yaml`` with absolute paths and pinned hub ids, so that the merge can be repeated from anywhere."""

    def absolute(source: Source) -> str:
        if source.adapter is not None:
            base = replace(source, name=source.name.removesuffix(f"+{source.adapter.name}"), adapter=None)
            return f"{absolute(base)}+{absolute(source.adapter)}"
        path = Path(source.name).expanduser()
        return str(path.resolve()) if path.exists() else source.name

    recipe = located.recipe.renamed({source.name: absolute(source) for source in located.sources})
    text = yaml_document(recipe.to_content())
    (folder / RECIPE).write_text("# merganser merge --config merge.yaml --out FOLDER\n" + text, encoding="utf-8")


# The folder ---------------------------------------------------------------------------------------------------------


def input_paths(located: LocatedRecipe, plan: Plan | None = None) -> list[Path]:
    """List the inputs of a merge: the paths that the recipe names, then the files that a plan reads."""
    named = [path for source in located.sources if (path := Path(source.name).expanduser()).exists()]
    for source in located.sources:
        if source.adapter is not None:
            named += [source.path, source.adapter.path]
    return named + sorted({tensor.path for job in plan.jobs for tensor in job.inputs} if plan is not None else ())


def check_target(target: Path, overwrite: bool, inputs: Iterable[Path] = (), what: str = "merge") -> None:
    """Refuse a target that exists, or whose replacement would remove an input.

    Args:
        target: folder to create, resolved.
        overwrite: whether a folder may be replaced.
        inputs: files and folders that are read.
        what: reads them, for messages.

    Raises:
        InputError: it is a file, a folder that is not empty, a mount point, or holds an input.
    """
    for path in inputs:
        # The path itself and the targets of links: the hub's files are links.
        targets = {path.parent.resolve() / path.name, path.resolve()}
        if path.is_dir():
            targets |= {file.resolve() for file in path.iterdir() if file.is_symlink()}
        if any(place.is_relative_to(target) for place in targets):
            raise InputError(
                f"{target} {'is' if target in targets else 'holds'} an input of the {what}: {path}.",
                "Choose another folder: replacing it would remove the input.",
            )
    if os.path.ismount(target):
        raise InputError(f"{target} is a mount point, which cannot be renamed.", "Choose a folder inside it.")
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() and not (overwrite and target.is_dir()):
        raise InputError(f"{target} exists.", "Choose another folder, or pass --overwrite to replace it.")


def existing_parent(path: Path) -> Path:
    """Return the nearest existing folder above a path."""
    for parent in path.parents:
        if parent.is_dir():
            return parent
    return Path(path.anchor)


@contextlib.contextmanager
def result_folder(target: Path) -> Iterator[Path]:
    """Create an empty temporary folder beside ``target``, which is renamed to it at the end of the block.

    Everything in it is flushed to the disk before: after a power cut the folder is whole or absent.

    Raises:
        InputError: the folder cannot be created.
        RunError: the disk failed or filled up; no file was kept.
    """
    try:
        with StagedChanges(shared=True) as changes:
            yield changes.folder(target)
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise RunError(
            f"Writing {target} failed{where}: {error.strerror or error}.",
            f"No file was kept; {_REMEDIES.get(error.errno or 0, 'choose another disk')}.",
        ) from error
