"""Names of a run, its model and its method, for people to read."""

from __future__ import annotations

import re
from pathlib import Path

from merganser.models.base_card import card_title
from merganser.runs.record import RunRecord

PLAIN_FOLDERS = frozenset({"model", "base", "weights", "checkpoint", "pretrained", "snapshot"})
"""Names of folders that do not say which model is in them."""

PLAIN_RUNS = frozenset({"run", "runs", "out", "output", "outputs", "results"})
"""Names of folders that do not say what was learned there."""

BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_])[-_]+(?=[^\W\d_]{2})")
"""Hyphens and underscores between words; those beside digits are part of a date or a version, as of ``v2``."""


def named(run: RunRecord, key: str) -> str:
    """Return ``config[key]`` where it is a word, else ``config[key]['name']``, else an empty string."""
    value = run.info.config.get(key)
    if isinstance(value, dict):
        value = value.get("name")
    return value if isinstance(value, str) else ""


def method_name(run: RunRecord) -> str:
    """Return the name of the method of ``run``."""
    return named(run, "method") or "unnamed method"


def model_name(run: RunRecord) -> str:
    """Return the name of the pretrained model: of a hub id the part after its owner, of a folder its card's heading.

    Of a folder without a card that is its name, or if it is called ``model`` or the like that of the folder above; of
    one in the hub's cache its id.
    """
    name = named(run, "model")
    parts = Path(name).parts
    cached = [part for part in parts if part.startswith("models--")]
    if cached:
        return cached[-1].rpartition("--")[2]
    if name and (title := card_title(Path(name))):
        return title
    known = [part for part in parts if part.lower() not in PLAIN_FOLDERS and part not in (".", "..", "/")]
    return known[-1] if known else "a model"


def run_title(run: RunRecord) -> str:
    """Return the title of a run: the name of its stream, else that of its folder, in words: ``Demo run``."""
    if name := named(run, "stream"):
        return _in_words(name)
    path = Path(run.path)
    # A folder that is called as its method, beside others that learned the same: the name of the folder of all.
    folder = path.parent if path.name == method_name(run) and path.parent.name else path
    if folder.name.lower() in PLAIN_RUNS and run.tasks:
        last = run.tasks[-1].name
        return f"{run.tasks[0].name} to {last}" if len(run.tasks) > 1 else last
    return _in_words(folder.name) or run.path


def _in_words(name: str) -> str:
    """Return a name of a file in words; one that has spaces was written by a person and stays as it is."""
    if " " in name:
        return name
    text = BETWEEN_WORDS.sub(" ", name)
    first = text.split(" ")[0]
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text
