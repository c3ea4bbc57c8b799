"""The process that renders chat templates, which are programs from the hub: bounded in time, memory and output.

It reads one JSON object per line from standard input, and answers each of its jobs with one line; see :func:`answer`.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

MEMORY = 1 << 28
"""Bytes that a template may use beyond what the process needs."""

FACTOR, CONSTANT = 20, 1_000_000
"""A result has at most FACTOR times the characters of the messages, plus CONSTANT."""

STATM = Path("/proc/self/statm")


class _Excess(Exception):
    """A template makes too much of its messages."""


class _Rewritten(Exception):
    """A template does not render the turns one after the other."""


def answer(request: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Render one conversation.

    Args:
        request: ``template``, ``tokens`` (the special tokens by their roles), ``marked`` (whether the template marks
            the assistant's text).
        job: ``messages``, ``tools`` (or null), and ``turns``: null for the prompt of the next answer; else the
            positions of the assistant's turns to find.

    Returns:
        ``text``, and ``spans``: the first and the last character + 1 of each of these turns; or ``error`` with what the
        template raised or exceeded; or ``rewritten`` with how the turns do not follow each other.
    """
    try:
        if job["turns"] is None:
            return {"text": _render(request, job, job["messages"], prompt=True)[0]}
        text, spans = _marked_spans(request, job) if request["marked"] else _prefix_spans(request, job)
        return {"text": text, "spans": spans}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MB of memory"}
    except _Rewritten as error:
        return {"rewritten": str(error)}
    except _Excess as error:
        return {"error": str(error)}
    except Exception as error:
        # A template is a program: whatever it raises is its own fault, and goes to the person who chose it.
        return {"error": f"{type(error).__name__}: {error}"}


def _render(
    request: dict[str, Any], job: dict[str, Any], messages: list[Any], *, prompt: bool = False, marked: bool = False
) -> tuple[str, list[list[int]]]:
    """Render messages; with ``prompt`` up to where the next answer begins.

    Returns:
        The text, and where the template marks the assistant's text.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, spans = render_jinja_template(
        conversations=[messages],
        tools=job.get("tools"),
        chat_template=request["template"],
        add_generation_prompt=prompt,
        return_assistant_tokens_mask=marked,
        **request["tokens"],
    )
    text = rendered[0]
    given = sum(len(str(value)) for message in messages for value in message.values()) + len(str(job.get("tools")))
    if len(text) > FACTOR * given + CONSTANT:
        raise _Excess(f"it makes {len(text)} characters of a message of {given}")
    return text, [list(span) for span in spans[0]] if spans else []


def _marked_spans(request: dict[str, Any], job: dict[str, Any]) -> tuple[str, list[list[int]]]:
    """Return the whole text, and where the template itself marks the assistant's turns."""
    text, spans = _render(request, job, job["messages"], marked=True)
    positions = [i for i, message in enumerate(job["messages"]) if message["role"] == "assistant"]
    if len(spans) != len(positions):
        raise _Rewritten(f"it marks {len(spans)} of {len(positions)} turns of the assistant")
    by_turn = dict(zip(positions, spans, strict=True))
    return text, [by_turn[i] for i in job["turns"]]


def _prefix_spans(request: dict[str, Any], job: dict[str, Any]) -> tuple[str, list[list[int]]]:
    """Return the whole text, and where each turn begins and ends in it, found by rendering the turns up to there."""
    messages = job["messages"]
    text, spans = _render(request, job, messages)[0], []
    for i in job["turns"]:
        before = _render(request, job, messages[:i], prompt=True)[0]
        if not text.startswith(before):
            history = _render(request, job, messages[:i])[0]
            if text.startswith(history):
                raise _Rewritten("it begins an answer in another way than the prompt for one")
            raise _Rewritten("it changes earlier turns when later ones follow")
        end = len(text)
        if i < len(messages) - 1:
            until = _render(request, job, messages[: i + 1])[0]
            end = _common(until, text)
            if end < len(before) or not _only_ends(until[end:], request["tokens"]):
                raise _Rewritten("it changes earlier turns when later ones follow")
        spans.append([len(before), end])
    return text, spans


def _common(first: str, second: str) -> int:
    """Return the length of the longest common beginning."""
    if second.startswith(first):
        return len(first)
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def _only_ends(text: str, tokens: dict[str, Any]) -> bool:
    """Return whether a text is only white space and special tokens: some templates end every conversation with one."""
    for token in tokens.values():
        for part in token if isinstance(token, list) else [token]:
            text = text.replace(part, "")
    return not text.strip()


def _bound_time(seconds: float) -> None:
    """Let the system end this process after so much computing from now on, even inside a single operation."""
    limit, hard = math.ceil(time.process_time() + seconds), resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _bound_memory() -> None:
    """Bound the address space, where the system can say how much is in use (Linux)."""
    if STATM.is_file():
        used = int(STATM.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        with contextlib.suppress(ValueError):  # a lower limit holds already
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))


def main() -> None:
    """Say that it is ready, then answer requests until standard input ends."""
    with contextlib.redirect_stdout(sys.stderr):  # imports what it needs
        answer({"template": "", "tokens": {}, "marked": False}, {"messages": [], "tools": None, "turns": None})
    _bound_memory()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        for job in request["jobs"]:
            _bound_time(request["seconds"])
            with contextlib.redirect_stdout(sys.stderr):
                made = answer(request, job)
            print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
