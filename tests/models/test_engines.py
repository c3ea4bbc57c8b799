"""Engines write the answers of generate, are compared with it on a sample, and are refused before any work."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from merganser import processes
from merganser.config import check_config
from merganser.errors import InputError
from merganser.events import Event, Notice
from merganser.learner import Learner
from merganser.models.base import Answer, Backbone, Lengths
from merganser.models.engines import CheckedEngine, ContinuousBatching, Vllm, Written, make_engine
from merganser.models.loading import load_backbone
from merganser.models.options import ModelOptions
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example, Task
from tests.learner.toys import CUES, model_folder, settings

TEXTS = [*CUES.values(), "the film"]
SPEC = AnswerSpec()


@pytest.fixture(scope="module")
def loaded() -> Any:
    options = ModelOptions.model_validate({"name": str(model_folder("causal")), "kind": "causal", "precision": "fp32"})
    made = load_backbone(options, Lengths(64, 4), 0)
    with torch.no_grad():
        for number, weight in enumerate(made.trainable().values()):
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    return made


@pytest.fixture
def backbone(loaded: Any) -> Iterator[Any]:
    yield loaded
    loaded.engine = None


def own(backbone: Any, texts: Sequence[str] = TEXTS) -> list[Answer]:
    return Backbone.answer(backbone, texts, SPEC)


class StandIn:
    """Writes what generate writes; the first ``wrong`` answers are others."""

    def __init__(self, backbone: Any, wrong: int = 0) -> None:
        self.backbone = backbone
        self.wrong = wrong
        self.calls: list[int] = []

    def write(self, prompts: Sequence[list[int]]) -> list[Written]:
        self.calls.append(len(prompts))
        written = []
        for number, prompt in enumerate(prompts):
            ids = torch.tensor([prompt])
            output = self.backbone.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_scores=True
            )
            tokens = output.sequences[0, len(prompt) :].tolist()
            probabilities = [float(score.softmax(-1).max()) for score in output.scores]
            written.append(Written(tokens if number >= self.wrong else [tokens[0] + 1], probabilities[: len(tokens)]))
        return written


def engine(backbone: Any, wrong: int = 0, sample: int = 4) -> tuple[StandIn, list[str]]:
    stand_in, told = StandIn(backbone, wrong), []
    backbone.engine = CheckedEngine("vllm", stand_in, sample, told.append)
    return stand_in, told


def same(found: Sequence[Answer], expected: Sequence[Answer]) -> bool:
    assert [answer.score for answer in found] == pytest.approx([answer.score for answer in expected], abs=1e-5)
    return [answer.text for answer in found] == [answer.text for answer in expected]


def test_an_engines_answers_are_used_and_compared(backbone: Any) -> None:
    stand_in, told = engine(backbone)
    done: list[int] = []
    assert same(backbone.answer(TEXTS, SPEC, 4, done.append), own(backbone))
    assert (stand_in.calls, told, sum(done)) == ([len(TEXTS)], [], len(TEXTS))
    backbone.answer(TEXTS[:4], SPEC)  # no more than the sample
    backbone.answer(TEXTS, AnswerSpec(("good", "bad"), mode="rank"))
    assert len(stand_in.calls) == 1


def test_few_differences_are_told_and_many_let_transformers_answer(backbone: Any) -> None:
    _, told = engine(backbone, wrong=1)
    assert backbone.answer(TEXTS, SPEC)[0].text != own(backbone)[0].text
    assert len(told) == 1
    assert told[0].startswith("evaluation.engine: vllm gives 1 of 4 texts another answer (such as '")
    _, told = engine(backbone, wrong=len(TEXTS))
    assert same(backbone.answer(TEXTS, SPEC), own(backbone))
    assert told[0].endswith("transformers answers this test set instead.")


def test_processes_write_parts_of_a_test_set(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[Any] = []
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "all_gather_object", lambda value: parts.append(value) or list(parts))
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        engine(backbone, sample=2)
        if rank == 0:
            parts.clear()
            monkeypatch.setattr(processes, "all_gather_object", lambda value: (parts.append(value), [value, value])[1])
            backbone.answer(TEXTS, SPEC, shared=True)
            monkeypatch.setattr(processes, "all_gather_object", lambda value: [parts[0], value])
    assert same(backbone.answer(TEXTS, SPEC, shared=True), own(backbone))


def test_continuous_batching_gives_the_same_answers(backbone: Any) -> None:
    assert ContinuousBatching(backbone, 3).write([]) == []  # a process may have none
    backbone.engine = CheckedEngine("continuous", ContinuousBatching(backbone, 3), 2)
    assert same(backbone.answer(TEXTS, SPEC), own(backbone))


def fake_vllm(backbone: Any) -> tuple[ModuleType, list[dict[str, Any]]]:
    """A package with the part of vLLM's interface that is used; it writes with the model here."""
    loaded: list[dict[str, Any]] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            loaded.append(options)

        def generate(self, inputs: Any, sampling: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
            if lora_request is not None:
                assert (Path(lora_request.path) / "adapter_model.safetensors").is_file()
                loaded[-1].setdefault("adapters", []).append(lora_request.number)
            assert sampling.stop_token_ids == backbone.eos_ids
            written = StandIn(backbone).write([one["prompt_token_ids"] for one in inputs])
            return [SimpleNamespace(outputs=[self.output(one)]) for one in written]

        def output(self, one: Written) -> Any:
            places = [
                {token: SimpleNamespace(logprob=math.log(p)), -1: SimpleNamespace(logprob=-9.0)}
                for token, p in zip(one.tokens, one.probabilities, strict=True)
            ]
            return SimpleNamespace(token_ids=tuple(one.tokens), logprobs=places)

    module, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.__dict__.update(LLM=LLM, SamplingParams=lambda **values: SimpleNamespace(**values))
    lora.__dict__["LoRARequest"] = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)
    sys.modules["vllm.lora.request"] = lora
    return module, loaded


def test_vllm_gets_each_new_adapter_under_a_new_number(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.lora.request", None)
    module, loaded = fake_vllm(backbone)
    backbone.engine = CheckedEngine("vllm", Vllm(backbone, 0.3, module), 2)
    for _ in range(2):
        assert same(backbone.answer(TEXTS[:3], SPEC), own(backbone, TEXTS[:3]))
    (only,) = loaded
    assert only.pop("adapters") == [1, 2]
    assert only == {
        "model": str(model_folder("causal")), "max_model_len": 68, "dtype": "float32", "gpu_memory_utilization": 0.3,
        "seed": 0, "enable_lora": True, "max_lora_rank": 8,
    }  # fmt: skip


def test_vllm_is_loaded_again_for_a_larger_rank(backbone: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm.lora.request", None)
    module, loaded = fake_vllm(backbone)
    vllm = Vllm(backbone, 0.3, module)
    config = tmp_path / "adapter_config.json"
    for rank in (4, 8, 9, 16, 2):
        monkeypatch.setattr(backbone, "save_weights", lambda _, rank=rank: config.write_text(json.dumps({"r": rank})))
        vllm._prepared(tmp_path)
    assert [options["max_lora_rank"] for options in loaded] == [8, 16]


def test_vllm_loads_whole_weights_again_when_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.lora.request", None)
    options = {"name": str(model_folder("causal")), "kind": "causal", "precision": "fp32", "lora": None}
    backbone: Any = load_backbone(ModelOptions.model_validate(options), Lengths(64, 4), 0)
    module, loaded = fake_vllm(backbone)
    vllm = Vllm(backbone, 0.3, module)
    prompts = [[1, 7, 9]]
    for change in (0.0, 0.0, 0.01):
        with torch.no_grad():
            next(iter(backbone.trainable().values())).add_(change)
        vllm.write(prompts)
    assert len(loaded) == 2
    assert "enable_lora" not in loaded[0]


def test_engines_that_cannot_be_used_are_refused_before_any_work(backbone: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vllm needs the package vllm, which is not installed"):
        make_engine("vllm", backbone, 8, 0.4, 4)
    values = settings(model={"kind": "causal", "name": str(model_folder("causal"))}, evaluation={"engine": "vllm"})
    del values["stream"]
    with pytest.raises(InputError, match="package vllm"):
        Learner.open(tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"evaluation\.engine: vllm is for kind 'causal'"):
        check_config(settings(evaluation={"engine": "vllm"}), "it.yaml")


def test_a_run_may_go_on_with_another_engine(tmp_path: Path) -> None:
    values = settings(model={"kind": "causal", "name": str(model_folder("causal"))}, training={"steps": 1})
    del values["stream"]
    rows = [Example(text, "good" if number % 2 else "bad") for number, text in enumerate(TEXTS)]
    with Learner.open(tmp_path / "run", **values) as learner:
        learner.learn(Task("t", rows, test=rows))
        scores = learner.evaluate()
    told: list[Event] = []
    values["evaluation"] = {"engine": "continuous", "engine_sample": 2}
    with Learner.open(tmp_path / "run", listener=told.append, **values) as learner:
        backbone: Any = learner.session.backbone
        assert backbone.engine.name == "continuous"
        backbone.engine.engine = StandIn(backbone, wrong=len(TEXTS))
        assert learner.evaluate() == scores
    assert any(isinstance(event, Notice) and "answers this test set instead" in event.text for event in told)
