"""Render chat templates in a process of their own, bounded in time, memory and output."""

from __future__ import annotations

import atexit
import datetime
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.errors import InputError, RunError, first_line
from merganser.models import chat_worker
from merganser.models.options import ModelOptions
from merganser.streams.conversation import Conversation, Turn

START_SECONDS = 300.0
"""Longest wait until the process is ready: it imports transformers, perhaps from a slow disk."""

SECONDS = 10
"""Computing time of one conversation."""

WALL_SECONDS = 120.0
"""Longest wait for one conversation. Computing time is bounded first; this holds where a loaded machine does not let
the process compute."""


PART_JOBS, PART_CHARACTERS = 256, 1_000_000
"""Conversations that are sent at once: at most so many, and not more than one after so many characters."""

TODAY = datetime.date(2025, 1, 1)
"""The date for templates that write today's."""

Job = dict[str, Any]
"""One conversation to render, see :func:`merganser.models.chat_worker.answer`."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


class _Stopped(Exception):
    """The process ended or was ended before it answered."""


class TemplateProcess:
    """A process that renders templates, started at once and used for all messages until it ends.

    Requests wait for each other. A process that exceeds a bound is ended; the next request starts a new one.

    Args:
        seconds: computing time of one conversation.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._ready = False
        self._rest = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process

    def start(self) -> None:
        """Start the process, if there is none, without waiting until it is ready."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            return
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", chat_worker.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            start_new_session=True,  # an interruption from the keyboard is for the parent, which ends it
        )
        self._owner, self._ready, self._rest = os.getpid(), False, b""

    def stop(self) -> None:
        """End the process, if it is this one's."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def render(self, template: ChatTemplate, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Render conversations; see :func:`merganser.models.chat_worker.answer` for the answers.

        Raises:
            InputError: the template does not end in time.
            RunError: the process cannot be started.
        """
        answers: list[dict[str, Any]] = []
        with self._lock:
            for part in _parts(jobs):
                content = {"template": template.text, "tokens": template.tokens, "marked": template.marked}
                request = json.dumps({**content, "seconds": self.seconds, "jobs": part}).encode() + b"\n"
                self._start()
                self._wait_until_ready()
                try:
                    self._send(request)
                    answers += [json.loads(self._read_line(WALL_SECONDS)) for _ in part]
                except _Stopped as error:
                    self.stop()
                    raise failed(template.name, f"it does not end within {self.seconds:g} seconds") from error
                except BaseException:
                    self.stop()  # interrupted: the next request would take what is still to come for its answers
                    raise
        return answers

    def _wait_until_ready(self) -> None:
        if self._ready:
            return
        try:
            self._read_line(START_SECONDS)
        except _Stopped as error:
            self.stop()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace").strip().splitlines()
            raise RunError(
                f"The process that renders chat templates did not start: {said[-1] if said else 'no reason given'}",
                "Use model.chat_template: false.",
            ) from error
        self._ready = True

    def _send(self, request: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except OSError as error:
            raise _Stopped from error

    def _read_line(self, seconds: float) -> bytes:
        """Return the next line of the process.

        Raises:
            _Stopped: it ended, or wrote none in time.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise _Stopped
                part = os.read(descriptor, 1 << 16)
                if not part:
                    raise _Stopped
                self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def failed(name: str, reason: str) -> InputError:
    """Create the error for a template that fails."""
    return InputError(
        f"The chat template of {name} cannot be used: {_shown(reason)}",
        "Correct it, or use a model whose template you trust; for texts without turns, model.chat_template: false.",
    )


def _shown(reason: str) -> str:
    """Return the first line of what a template raised, at most 300 characters, as the end of a sentence."""
    return f"{first_line(Exception(reason))[:300].rstrip('.')}."


def _parts(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield the jobs in lists of bounded size."""
    part: list[Job] = []
    size = 0
    for job in jobs:
        if part and (len(part) == PART_JOBS or size > PART_CHARACTERS):
            yield part
            part, size = [], 0
        part.append(job)
        size += sum(len(str(message["content"])) for message in job["messages"])
    if part:
        yield part


TEMPLATES = TemplateProcess()
"""The process of this one for all models."""

atexit.register(TEMPLATES.stop)


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of one tokenizer.

    Attributes:
        name: of the model, for messages.
        text: the template, a Jinja program. A clock that it reads stands still (:data:`TODAY`).
        tokens: the special tokens by their roles, as templates name them.
    """

    name: str
    text: str
    tokens: dict[str, Any]

    @classmethod
    def of(cls, tokenizer: Any, name: str) -> ChatTemplate:
        """Return the default template of a tokenizer.

        Raises:
            InputError: it has none.
        """
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise failed(name, str(error)) from error
        tokens = {role: _plain(token) for role, token in tokenizer.special_tokens_map.items()}
        return cls(name, _with_fixed_date(template), tokens)

    @property
    def marked(self) -> bool:
        """Whether the template marks the assistant's text, with ``{% generation %}``."""
        return _GENERATION.search(self.text) is not None

    def prompts(self, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
        """Render conversations up to where the next answer begins: ``text`` or ``error`` for each.

        Raises:
            InputError: the template does not end in time.
        """
        return TEMPLATES.render(self, [_job(conversation, None) for conversation in conversations])

    def wholes(self, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
        """Render whole conversations: ``text``, or ``error`` or ``rewritten`` as :meth:`spans`.

        Raises:
            InputError: the template does not end in time.
        """
        return TEMPLATES.render(self, [_job(conversation, []) for conversation in conversations])

    def spans(self, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
        """Render whole conversations and find the assistant's trained turns and the last turn in them.

        Returns:
            For each ``text`` and ``spans`` (first and last character + 1 of each of these turns), or ``error``, or
            ``rewritten``: what the template does that no turn can be found by rendering the turns before it.

        Raises:
            InputError: the template does not end in time.
        """
        return TEMPLATES.render(self, [_job(conversation, found_turns(conversation)) for conversation in conversations])


def found_turns(conversation: Conversation) -> list[int]:
    """Return the positions of the assistant's trained turns, and of the last turn."""
    turns = conversation.turns
    return [i for i, turn in enumerate(turns) if turn.role == "assistant" and (turn.trained or i == len(turns) - 1)]


def _job(conversation: Conversation, turns: list[int] | None) -> Job:
    return {"messages": conversation.messages(), "tools": conversation.tool_list(), "turns": turns}


def uses_template(options: ModelOptions, tokenizer: Any) -> bool:
    """Return whether texts go through the tokenizer's chat template: as the options say, else if there is one."""
    if options.chat_template == "auto":
        return options.kind == "causal" and bool(getattr(tokenizer, "chat_template", None))
    return options.chat_template


def chat_prompt(tokenizer: Any, name: str, text: str, system: str | None = None) -> str:
    """Return the prompt that a tokenizer's chat template makes of a message of the user.

    Raises:
        InputError: there is no default template, it fails, or it exceeds a bound.
    """
    conversation = Conversation((Turn("user", text),))
    template = ChatTemplate.of(tokenizer, name)
    (answer,) = template.prompts([conversation.with_system(system) if system else conversation])
    if "error" in answer and system and "text" in template.prompts([conversation])[0]:
        raise InputError(
            f"The chat template of {name} does not take a system prompt: {_shown(answer['error'])}",
            "Leave model.system out, and put its text into the first message of each conversation.",
        )
    if "error" in answer:
        raise failed(name, answer["error"])
    return str(answer["text"])


def _plain(token: Any) -> Any:
    """Return a special token, or a list of some, as text."""
    return [str(part) for part in token] if isinstance(token, list | tuple) else str(token)


def _with_fixed_date(template: str) -> str:
    """Return a template for which today is :data:`TODAY`, where it has a date: else no run could resume tomorrow."""
    if "strftime_now" not in template:
        return template
    formats = dict.fromkeys(match[2] for match in _CLOCK.finditer(template))
    cases = "".join(
        f"{{%- {'elif' if number else 'if'} format == {json.dumps(form)} -%}}{TODAY.strftime(form)}"
        for number, form in enumerate(formats)
    )
    body = f"{cases}{{%- else -%}}{TODAY.isoformat()}{{%- endif -%}}" if cases else TODAY.isoformat()
    return f"{{%- macro strftime_now(format) -%}}{body}{{%- endmacro -%}}{template}"
