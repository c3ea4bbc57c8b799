"""Call the Hugging Face hub: its errors become cause and remedy, and a busy hub is called again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from merganser.errors import InputError, MerganserError, RunError, first_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

ResultT = TypeVar("ResultT")

TRIES = 5
"""Requests before a hub that is busy is given up."""

LONGEST_WAIT = 300.0
"""Seconds that are waited before the next try; a hub that requires more is given up at once."""

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"


@contextlib.contextmanager
def hub_errors(doing: str, *, writes: bool = False) -> Iterator[None]:
    """Turn the errors of the hub's client into errors with cause and remedy.

    Args:
        doing: what cannot be done, after "cannot": ``"be read"``, with its subject.
        writes: it changes something on the hub.

    Raises:
        InputError: no such repository, revision or file, no access, or no network is allowed.
        RunError: the hub is busy, failed, or the connection was cut.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.errors import HTTPError as TransportError

    known = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, TransportError)
    try:
        yield
    except MerganserError:
        raise
    except (*known, ConnectionError, RuntimeError, ValueError) as error:
        # What happened may be wrapped: an upload that failed is a RuntimeError.
        raised = refusal(error) or next((link for link in _chain(error) if isinstance(link, known)), error)
        raise explained(raised, doing, writes=writes) from error


@contextlib.contextmanager
def cut_connections(doing: str) -> Iterator[None]:
    """Turn connections that fail or are cut into errors with cause and remedy; other errors pass.

    Args:
        doing: as of :func:`hub_errors`.

    Raises:
        RunError: the connection failed.
    """
    from huggingface_hub.errors import HTTPError as TransportError

    try:
        yield
    except TransportError as error:
        raise hub_failure(error, doing) or error from error


def hub_failure(error: BaseException, doing: str) -> MerganserError | None:
    """Return what the hub answered, or that the connection to it failed, in words; ``None``: it is something else.

    Args:
        error: of a library that reads from the hub, whatever it made of it.
        doing: as of :func:`hub_errors`.
    """
    from huggingface_hub.errors import HTTPError as TransportError

    if (answer := refusal(error)) is not None:
        return explained(answer, doing)
    failed = [link for link in _chain(error) if isinstance(link, TransportError | ConnectionError)]
    return explained(failed[-1], doing) if failed and not is_offline() else None


def refusal(error: BaseException) -> HfHubHTTPError | None:
    """Return the answer of the hub that an error was raised from; ``None``: it gave none."""
    from huggingface_hub.errors import HfHubHTTPError

    return next((link for link in _chain(error) if isinstance(link, HfHubHTTPError)), None)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those it was raised from, the last one first."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def explained(error: BaseException, doing: str, *, writes: bool = False) -> MerganserError:
    """Return an error of the hub's client in words.

    Args:
        error: one of those that :func:`hub_errors` turns.
        doing, writes: as there.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return _of_status(error, doing, writes)
    if isinstance(error, HFValidationError):
        return InputError(f"{doing}: {first_line(error)}", "The name of a repository is OWNER/NAME.")
    if isinstance(error, ValueError):
        return InputError(f"{doing}: {first_line(error)}")
    if isinstance(error, OfflineModeIsEnabled) or is_offline():
        return InputError(f"{doing}: HF_HUB_OFFLINE is set, so the hub is not asked.", "Unset HF_HUB_OFFLINE.")
    return RunError(
        f"{doing}: the connection to the hub failed ({first_line(error).rstrip('.')}).",
        "Check the network, and start the same command again",
    )


def is_offline() -> bool:
    """Return whether the hub's client is set not to use the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _of_status(error: HfHubHTTPError, doing: str, writes: bool) -> MerganserError:
    """Explain an answer of the hub by its status."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{doing}: access to it must be granted ({status}).", f"Ask for it on its page of the hub. {LOG_IN}."
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{doing}: it has no such revision ({status}).", "Name a branch, a tag or a commit.")
    if status == 401:
        return InputError(
            f"{doing}: the hub asks for a valid login (401); what is private looks as if it did not exist.",
            f"{LOG_IN}; then check the name.",
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return InputError(f"{doing}: there is none of this name, or it is private (404).", f"Check the name. {LOG_IN}.")
    if status in (402, 403):
        tokens = "(https://huggingface.co/settings/tokens)"
        remedy = f"Use a token that may read it {tokens}, or ask its owner for access."
        if writes:
            remedy = f"Use a token that may write to this owner {tokens}, or another owner."
        return InputError(f"{doing}: the hub refuses it ({status}): your login lacks the right.", remedy)
    if status == 429:
        wait = retry_after(error)
        when = f"in {wait:,.0f} seconds" if wait else "in some minutes"
        return RunError(f"{doing}: the hub has had too many requests of yours (429).", f"Start it again {when}.")
    if status in (409, 412):
        return RunError(
            f"{doing}: it was changed at the same time ({status}).", "Start the same command again to see what is new."
        )
    said = error.server_message or first_line(error)
    if status >= 500:
        return RunError(f"{doing}: the hub failed ({status}: {said}).", "Start the same command again later.")
    return InputError(f"{doing}: the hub refuses it ({status}: {said}).", "")


def retry_after(error: HfHubHTTPError) -> float | None:
    """Return the seconds to wait that the hub sends; ``None``: it sends none."""
    headers = error.response.headers
    value = headers.get("Retry-After", "")
    if not value:  # "ratelimit": '"api";r=0;t=55'
        parts = dict(part.strip().partition("=")[::2] for part in headers.get("ratelimit", "").split(";"))
        value = parts.get("t", "") if parts.get("r") == "0" else ""
    return float(value) if value.isdecimal() else None


def patiently(call: Callable[[], ResultT], say: Callable[[str], None]) -> ResultT:
    """Return the result of a request, which is sent again while the hub is busy (429) or fails (5xx).

    The wait is the hub's ``Retry-After``, or 1, 2, 4, 8 seconds.

    Args:
        call: the request; sent twice, it must do no harm.
        say: receives a sentence before each wait.

    Raises:
        HfHubHTTPError: another error, one that requires a wait longer than :data:`LONGEST_WAIT`, or the last of
            :data:`TRIES`.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for number in range(1, TRIES):
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code
            wait = retry_after(error) or 2.0 ** (number - 1)
            if not (status == 429 or status >= 500) or wait > LONGEST_WAIT:
                raise
        say(f"The hub is busy ({status}); trying again in {wait:,.0f} seconds ({number + 1} of {TRIES}).")
        time.sleep(wait)
    return call()
