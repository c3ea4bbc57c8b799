"""A model repository of the hub, as a push reads and changes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from merganser.files.hub import hub_errors, patiently
from merganser.files.temporary_folder import temporary_folder
from merganser.lineage import FILE, Lineage, read_lineage

ResultT = TypeVar("ResultT")

MAIN = "main"

OF_THE_HUB = (".gitattributes", "README.md")
"""Files that a new repository may have."""


@dataclass(frozen=True)
class RemoteState:
    """What a repository holds.

    Attributes:
        exists: whether there is one.
        private: whether others cannot read it.
        head: the commit of ``main``.
        files: names of the files of ``main``.
        tags, branches: commit by name.
    """

    exists: bool = False
    private: bool = False
    head: str | None = None
    files: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


class HubRepository:
    """A repository of the hub that ``HF_ENDPOINT`` names, with the login of ``hf auth login`` or ``HF_TOKEN``.

    Every method sends its request again while the hub is busy.

    Args:
        name: ``owner/name``.
        say: receives a sentence before each wait.

    Raises:
        InputError: no access, no such name, or no network is allowed.
        RunError: the hub is busy, failed, or the connection was cut.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        from huggingface_hub import HfApi

        self.name = name
        self._say = say
        self._api: Any = HfApi()

    @property
    def url(self) -> str:
        """Return the address of its page."""
        return f"{self._api.endpoint}/{self.name}"

    def state(self) -> RemoteState:
        """Read what it holds."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def read() -> RemoteState:
            try:
                info = self._api.repo_info(self.name)
            except RepositoryNotFoundError as error:
                if error.response.status_code == 404:
                    return RemoteState()
                raise
            refs = self._api.list_repo_refs(self.name)
            return RemoteState(
                exists=True,
                private=bool(info.private),
                head=info.sha,
                files=tuple(sibling.rfilename for sibling in info.siblings or ()),
                tags={ref.name: ref.target_commit for ref in refs.tags},
                branches={ref.name: ref.target_commit for ref in refs.branches},
            )

        return self._send("cannot be read", read)

    def lineage(self, revision: str) -> Lineage | None:
        """Read the ``lineage.json`` of a revision; ``None``: it has none."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with temporary_folder() as cache:  # never an older one that the hub's cache may hold

            def read() -> Lineage | None:
                try:
                    path = self._api.hf_hub_download(self.name, FILE, revision=revision, cache_dir=cache)
                except RemoteEntryNotFoundError:
                    return None
                return read_lineage(Path(path).parent)

            return self._send(f"cannot be read at '{revision}'", read)

    def create(self, private: bool) -> None:
        """Create it, unless it is there."""
        visibility = True if private else None  # None: as the owner's settings say
        self._send("cannot be created", lambda: self._api.create_repo(self.name, private=visibility, exist_ok=True))

    def commit(
        self, folder: Path, message: str, *, branch: str = MAIN, parent: str | None = None, stale: Sequence[str] = ()
    ) -> str:
        """Upload the files of a folder as one commit.

        Args:
            folder: its files replace those of the same names.
            message: of the commit.
            branch: to commit on.
            parent: the commit that the branch must be at; another one is an error.
            stale: names of files to delete, where the folder has none of the name.

        Returns:
            The commit.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]

        def upload() -> str:
            adds = [CommitOperationAdd(name, str(path)) for name, path in zip(names, files, strict=True)]
            deletions = [CommitOperationDelete(name) for name in stale if name not in names]
            info = self._api.create_commit(
                self.name, [*adds, *deletions], commit_message=message, revision=branch, parent_commit=parent
            )
            return str(info.oid)

        return self._send("cannot be pushed to", upload)

    def tag(self, name: str, commit: str) -> None:
        """Name a commit."""
        self._send(
            f"cannot get the revision '{name}'",
            lambda: self._api.create_tag(self.name, tag=name, revision=commit, exist_ok=True),
        )

    def delete_tag(self, name: str) -> None:
        """Take a name from a commit, which stays."""
        self._send(f"cannot lose the revision '{name}'", lambda: self._api.delete_tag(self.name, tag=name))

    def start_branch(self, name: str, state: RemoteState) -> None:
        """Begin a branch at ``main``; one of this name, left by an interruption, is replaced."""
        if name in state.branches:
            self.delete_branch(name)
        self._send(f"cannot get the branch '{name}'", lambda: self._api.create_branch(self.name, branch=name))

    def delete_branch(self, name: str) -> None:
        """Delete a branch; a commit with a tag stays."""
        self._send(f"cannot lose the branch '{name}'", lambda: self._api.delete_branch(self.name, branch=name))

    def _send(self, problem: str, request: Callable[[], ResultT]) -> ResultT:
        with hub_errors(f"'{self.name}' {problem}", writes=True):
            return patiently(request, self._say)
