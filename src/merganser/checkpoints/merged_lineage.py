"""The lineage of a merge, from those of its models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merganser.checkpoints.source import Checkpoint, LocatedRecipe, Source, adapter_folder
from merganser.errors import InputError
from merganser.lineage import (
    BaseModelLineage,
    Lineage,
    Parent,
    TaskLineage,
    model_digest,
    read_lineage,
    write_lineage,
)

CARD = "README.md"


def check_lineages(located: LocatedRecipe) -> None:
    """Refuse adapters that their lineages say were trained on different models.

    Raises:
        InputError: naming both; a lineage is damaged.
    """
    known = [(source, lineage) for source in located.models if (lineage := lineage_of(source)) is not None]
    for source, lineage in known[1:]:
        first, expected = known[0]
        if lineage.base.sha256 != expected.base.sha256 and not located.recipe.allow_different_bases:
            raise InputError(
                f"{first.name} was trained on {expected.base.described}, {source.name} on {lineage.base.described}.",
                "Updates of different models cannot be merged. If both are the same model, pass "
                "--allow-different-bases (allow_different_bases: true in the file).",
            )


def check_lineage_of_base(base: Checkpoint, adapter: Source) -> None:
    """Refuse an adapter that was trained, by its lineage, on another model than the base it is added to.

    Raises:
        InputError: naming both; the lineage is damaged.
    """
    lineage = lineage_of(adapter)
    if lineage is None or not base.config:
        return
    sha256 = model_digest([base.folder / shard for shard in base.shards], base.config)
    loaded = BaseModelLineage(name=base.label.removesuffix(f"+{adapter.name}"), sha256=sha256)
    if loaded.sha256 != lineage.base.sha256:
        raise InputError(
            f"{adapter.name} was trained on {lineage.base.described}, and {loaded.described} is another model.",
            "Name that base. If both are the same model, pass --allow-different-bases (allow_different_bases: true).",
        )


def write_merged_lineage(located: LocatedRecipe, folder: Path) -> None:
    """Write ``lineage.json`` of a merge, where its models have lineages with one base; else nothing.

    Args:
        located: its models.
        folder: of the result, complete but for this file.
    """
    lineages = [lineage_of(source) for source in located.models]
    known = [lineage for lineage in lineages if lineage is not None]
    if not known or len({lineage.base.sha256 for lineage in known}) > 1:
        return
    parents = [
        Parent(name=_shareable(source.name), weights="" if lineage is None else lineage.weights)
        for source, lineage in zip(located.models, lineages, strict=True)
    ]
    merged = Lineage(
        base=known[0].base,
        tokenizer=_common([lineage.tokenizer for lineage in known], ""),
        quantisation=_common([lineage.quantisation for lineage in known], "several"),
        data=_all_data(known),
        weights="",
        holds="adapter" if adapter_folder(folder) is not None else "model",
        parents=parents,
    )
    write_lineage(folder, merged, without=(CARD,))


def lineage_of(source: Source) -> Lineage | None:
    """Return the lineage beside a model, or its adapter's; ``None``: it has none, or is a single file.

    Raises:
        InputError: it is damaged.
    """
    path = source.path if source.adapter is None else source.adapter.path
    folder = adapter_folder(path) or path
    return read_lineage(folder) if folder.is_dir() else None


def _shareable(name: str) -> str:
    """Return a hub id, or the last part of a path."""
    parts = (Path(part).expanduser() for part in ([name] if Path(name).expanduser().exists() else name.split("+")))
    return "+".join(part.resolve().name if part.exists() else str(part) for part in parts)


def _common(values: Sequence[str], otherwise: str) -> str:
    return values[0] if len(set(values)) == 1 else otherwise


def _all_data(lineages: Sequence[Lineage]) -> list[TaskLineage]:
    """Return the data of all models, each task's once."""
    data: list[TaskLineage] = []
    for lineage in lineages:
        data += [task for task in lineage.data if task not in data]
    return data
