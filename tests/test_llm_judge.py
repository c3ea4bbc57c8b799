"""The example of a judge, against a server on the loopback address that answers as such endpoints do, or badly."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.metrics import score_answers
from merganser.streams.metric_source import find_metric

KEY = "sk-secret-4711"


class Server(ThreadingHTTPServer):
    """An endpoint with a queue of bad replies that it gives first; then the grade is the number in the answer.

    Attributes:
        bad: status code, body and headers of each.
        requests: path, headers and body of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bad: list[tuple[int, str, dict[str, str]]] = []
        self.requests: list[tuple[str, Any, dict[str, Any]]] = []
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][1]["content"]
        number = re.search(r"<answer>\n(\d+)", text)
        reply = f'Thinking {{about}} it. {{"grade": {number[1] if number else 0}}}'
        with self.server.lock:
            self.server.requests.append((self.path, self.headers, body))
            bad = self.server.bad.pop(0) if self.server.bad else None
        status, content, headers = bad or (200, json.dumps({"choices": [{"message": {"content": reply}}]}), {})
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1/")
        monkeypatch.setenv("JUDGE_MODEL", "judge-1")
        monkeypatch.setenv("JUDGE_KEY", KEY)
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The judge of the example, found as a run's file finds it, without waiting between its requests."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    metric = find_metric("llm_judge:judge", Path(__file__).parent.parent / "examples")
    assert (metric.name, KEY in repr(metric)) == ("llm_judge:judge", False)
    return replace(metric, function=replace(metric.function, backoff=0.0))


def test_every_answer_is_graded_with_its_reference_and_input(server: Server, judge: Any) -> None:
    answers = [str(number) for number in (10, 0, 5, 7, 1, 2, 3, 4, 6, 8)]
    score = score_answers(judge, answers, ["ref"] * 10, ["why?"] * 10)
    assert score.value == pytest.approx(0.46)
    path, headers, body = server.requests[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    assert "<reference>\nref\n</reference>" in body["messages"][1]["content"]
    assert "<input>\nwhy?\n</input>" in body["messages"][1]["content"]


def test_a_busy_server_and_replies_without_a_grade_are_asked_again(server: Server, judge: Any) -> None:
    malformed = ["no grade", '{"choices": []}', json.dumps({"choices": [{"message": {"content": '{"grade": 11}'}}]})]
    server.bad = [(429, "slow down", {"Retry-After": "0"}), (503, "", {}), *((200, text, {}) for text in malformed)]
    assert score_answers(judge, ["9"], ["a"], ["b"]).value == 0.9
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("bad", "cause", "remedy"),
    [
        ((401, f'{{"error": "Incorrect API key: {KEY}"}}', {}), "answered 401: ", "Set JUDGE_KEY to a valid key."),
        ((404, "no such model", {}), "answered 404: 'no such model'", "Correct JUDGE_URL"),
        ((429, "limit", {}), "answered 429: 'limit'", "use fewer requests at a time"),
        ((200, f"<html>{KEY}</html>", {}), "gave no grade from 0 to 10: '<html>...</html>'", "Use a better model"),
    ],
)
def test_what_the_server_refuses_is_said_without_the_key(
    server: Server, judge: Any, bad: Any, cause: str, remedy: str
) -> None:
    server.bad = [bad] * 99
    with pytest.raises(InputError) as caught:
        score_answers(judge, ["9"], ["a"], ["b"])
    assert "The judge at 127.0.0.1, asked about example 1, " in caught.value.cause
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy
    assert KEY not in str(caught.value)


def test_without_a_server_or_its_name(server: Server, judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(judge, function=replace(judge.function, url="http://127.0.0.1:9/v1", retries=1, timeout=2.0))
    with pytest.raises(InputError, match="asked about example 1, cannot be reached: ConnectionError"):
        score_answers(gone, ["9"], ["a"], ["b"])
    monkeypatch.delenv("JUDGE_URL")
    with pytest.raises(InputError, match="The judge has no endpoint"):
        score_answers(judge, ["9"], ["a"], ["b"])
