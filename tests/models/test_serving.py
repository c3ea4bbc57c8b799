"""An export answers requests of ``transformers serve``."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from merganser.models.export import export_model
from merganser.streams.answers import AnswerSpec
from tests.models.conftest import Loader, disturb

TEXT = "the film was good"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The program that ``transformers serve FOLDER`` starts, in this process; gives its address."""
    from transformers.cli.serve import Serve
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(str(folder), device="cpu", host="127.0.0.1", port=port, log_level="error", non_blocking=True)
    try:
        while not serve.server.started:
            assert serve._thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.kill_server()
        logging.set_verbosity(verbosity)


def ask(address: str, **request: Any) -> dict[str, Any]:
    body = json.dumps(request).encode()
    asked = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.loads(answer.read())


def test_transformers_serve_answers_as_the_run_does(load: Loader, tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn", "openai"):  # transformers[serving]
        pytest.importorskip(package)
    backbone = load("chat", chat_template=True)
    disturb(backbone)
    expected = backbone.answer([TEXT], AnswerSpec())[0].text
    export_model(backbone, tmp_path / "support", {"chat": AnswerSpec()}, True)
    with served(tmp_path / "support") as address:
        messages = [{"role": "user", "content": TEXT}]
        answer = ask(address, model=str(tmp_path / "support"), messages=messages, max_tokens=backbone.lengths.target)
    assert answer["choices"][0]["message"]["content"].strip() == expected
