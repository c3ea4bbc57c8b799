"""The process that renders chat templates, which are programs from the hub: bounded in time, memory and output.

It reads one JSON object per line from standard input and answers each with one line; see :func:`main`.
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
"""A result has at most FACTOR times the characters of the message, plus CONSTANT."""

STATM = Path("/proc/self/statm")


def render(request: dict[str, Any]) -> dict[str, str]:
    """Render one message up to the answer.

    Args:
        request: ``template``, ``text`` (of the user) and ``tokens`` (the special tokens by their roles).

    Returns:
        ``text``, or ``error`` with what the template raised or exceeded.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    text = request["text"]
    try:
        rendered, _ = render_jinja_template(
            conversations=[[{"role": "user", "content": text}]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["tokens"],
        )
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MB of memory"}
    except Exception as error:
        # A template is a program: whatever it raises is its own fault, and goes to the person who chose it.
        return {"error": f"{type(error).__name__}: {error}"}
    if len(rendered[0]) > FACTOR * len(text) + CONSTANT:
        return {"error": f"it makes {len(rendered[0])} characters of a message of {len(text)}"}
    return {"text": rendered[0]}


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
    with contextlib.redirect_stdout(sys.stderr):
        render({"template": "{{ messages[0].content }}", "text": "", "tokens": {}})  # imports what it needs
    _bound_memory()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _bound_time(request["seconds"])
        with contextlib.redirect_stdout(sys.stderr):
            answer = render(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
