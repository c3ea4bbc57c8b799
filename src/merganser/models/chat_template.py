"""Render chat templates in a process of their own, bounded in time, memory and output."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from merganser.errors import InputError, RunError, first_line
from merganser.models import chat_worker

START_SECONDS = 300.0
"""Longest wait until the process is ready: it imports transformers, perhaps from a slow disk."""

SECONDS = 10
"""Computing time of one message."""

WALL_SECONDS = 120.0
"""Longest wait for one message. Computing time is bounded first; this holds where a loaded machine does not let the
process compute."""


class _Stopped(Exception):
    """The process ended or was ended before it answered."""


class TemplateProcess:
    """A process that renders templates, started at once and used for all messages until it ends.

    Requests wait for each other. A process that exceeds a bound is ended; the next request starts a new one.

    Args:
        seconds: computing time of one message.
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

    def render(self, name: str, template: str, tokens: dict[str, Any], text: str) -> str:
        """Return the prompt for a message of the user, up to where the answer begins.

        Args:
            name: of the model, for messages.
            template: the model's chat template.
            tokens: its special tokens by their roles, as the template names them.
            text: the message.

        Raises:
            InputError: the template fails, or exceeds a bound.
            RunError: the process cannot be started.
        """
        content = {"template": template, "tokens": tokens, "text": text, "seconds": self.seconds}
        request = json.dumps(content).encode() + b"\n"
        with self._lock:
            self._start()
            self._wait_until_ready()
            try:
                answer = self._answer(request)
            except _Stopped as error:
                self.stop()
                raise _failed(name, f"it does not end within {self.seconds:g} seconds") from error
        if "error" in answer:
            raise _failed(name, answer["error"])
        return str(answer["text"])

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

    def _answer(self, request: bytes) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except OSError as error:
            raise _Stopped from error
        return json.loads(self._read_line(WALL_SECONDS))

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


def _failed(name: str, reason: str) -> InputError:
    return InputError(
        f"The chat template of {name} cannot be used: {first_line(Exception(reason))[:300]}",
        "Use model.chat_template: false, or a model whose template you trust.",
    )


TEMPLATES = TemplateProcess()
"""The process of this one for all models."""

atexit.register(TEMPLATES.stop)


def chat_prompt(tokenizer: Any, name: str, text: str) -> str:
    """Return the prompt that a tokenizer's chat template makes of a message of the user.

    Raises:
        InputError: there is no default template, it fails, or it exceeds a bound.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise _failed(name, str(error)) from error
    tokens = {role: _plain(token) for role, token in tokenizer.special_tokens_map.items()}
    return TEMPLATES.render(name, template, tokens, text)


def _plain(token: Any) -> Any:
    """Return a special token, or a list of some, as text."""
    return [str(part) for part in token] if isinstance(token, list | tuple) else str(token)
