"""The name under which others find the pretrained model of an adapter: a hub id with its commit, or a placeholder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError
from merganser.lineage import PLACEHOLDER
from merganser.models.pretrained import Pretrained

_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)(?:--(?P<name>[^/]+))?/snapshots/(?P<commit>[0-9a-f]{40})")
"""Folder of a model in the hub's cache."""


@dataclass(frozen=True)
class BaseReference:
    """How an export names its pretrained model.

    Attributes:
        name: a hub id, or a placeholder.
        revision: commit, tag or branch of a hub id, where it is known.
        gguf: name of the ``.gguf`` file that the model was read from; empty for other models.
    """

    name: str
    revision: str | None = None
    gguf: str = ""

    @property
    def on_hub(self) -> bool:
        """Whether the name is a hub id."""
        return not self.name.startswith(PLACEHOLDER)

    @property
    def short(self) -> str:
        """Return the last part of the name."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def pinned(self) -> str:
        """Return ``name@revision``, or the name alone."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def base_reference(pretrained: Pretrained, given: str | None = None) -> BaseReference:
    """Return the name of a pretrained model for others.

    A model that was read by its hub id, or from the hub's cache, has that id and its commit.

    Args:
        given: ``ID`` or ``ID@REVISION`` of the same model on the hub, if it was read from elsewhere.

    Raises:
        InputError: ``given`` is no hub id.
    """
    if given is not None:
        return _given(given)
    source = pretrained.source
    if source.gguf is not None:
        return BaseReference(f"{PLACEHOLDER}{source.gguf.stem}", gguf=source.gguf.name)
    folder = Path(source.location)
    if not folder.is_dir():
        commit = getattr(pretrained.settings.config, "_commit_hash", None)
        return BaseReference(source.location, commit or source.revision)
    if cached := _SNAPSHOT.search(folder.resolve().as_posix()):
        return BaseReference("/".join(filter(None, (cached["owner"], cached["name"]))), cached["commit"])
    return BaseReference(f"{PLACEHOLDER}{folder.resolve().name}")


def _given(text: str) -> BaseReference:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, _, revision = text.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"'{text}' is no hub id.", "Give --base-model as OWNER/NAME or OWNER/NAME@REVISION."
        ) from error
    return BaseReference(name, revision or None)
