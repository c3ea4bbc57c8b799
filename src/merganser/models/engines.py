"""Other programs that write the answers of a causal model, faster than batches of ``generate``.

An engine gets token ids and returns token ids with their probabilities, so that prompts, answers and confidences mean
the same whatever wrote them. On a sample of every test set they are compared with those of ``generate``
(:class:`CheckedEngine`): kernels and number formats differ, and an engine may have other weights than it should.
"""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from merganser.checkpoints.source import ADAPTER_CONFIG
from merganser.errors import InputError, RunError
from merganser.models.base import Answer, Lengths
from merganser.models.options import Engine as EngineName
from merganser.models.options import ModelOptions
from merganser.models.pretrained import Pretrained

TOLERATED = 0.25
"""Share of a sample whose answers may differ: decoding takes another path where two tokens are about as likely."""

PAGE = 64
"""Tokens per page of the cache of continuous batching."""


@dataclass(frozen=True)
class Written:
    """One answer.

    Attributes:
        tokens: its token ids; the end of text is the last, unless the answer was cut.
        probabilities: of each of them.
    """

    tokens: list[int]
    probabilities: list[float]


class Model(Protocol):
    """What an engine needs of a :class:`~merganser.models.causal.Causal`."""

    options: ModelOptions
    lengths: Lengths
    precision: Any
    pretrained_from: Pretrained
    decoding: Any
    eos_ids: list[int]

    @property
    def base(self) -> Any: ...

    def trainable(self) -> dict[str, Any]: ...

    def save_weights(self, folder: Path, /) -> None: ...


class Engine(Protocol):
    """Writes answers greedily with the current weights of a model."""

    def write(self, prompts: Sequence[list[int]]) -> list[Written]:
        """Return the answers to prompts (token ids), in their order.

        Raises:
            RunError: it failed.
        """
        ...


class ContinuousBatching:
    """Continuous batching of transformers: an answer that ends makes room for the next prompt at once.

    Args:
        backbone: whose model writes.
        rows: answers that are written at the same time.
    """

    def __init__(self, backbone: Model, rows: int) -> None:
        self.backbone = backbone
        self.rows = rows

    def write(self, prompts: Sequence[list[int]]) -> list[Written]:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        if not prompts:  # a process may have none
            return []
        base, longest = self.backbone.base, max(map(len, prompts)) + self.backbone.lengths.target
        # On a GPU it takes what is free; on a CPU it would take most of the memory of the machine.
        pages = -(-longest // PAGE) + 1
        bounds = {} if base.device.type == "cuda" else {"num_blocks": pages * self.rows, "max_batch_tokens": 8 * PAGE}
        config = ContinuousBatchingConfig(
            page_size=256 if base.device.type == "cuda" else PAGE,
            max_requests_per_batch=self.rows,
            return_logprobs=True,
            seed=0,
            **bounds,
        )
        written = base.generate_batch(
            list(prompts),
            generation_config=self.backbone.decoding,
            continuous_batching_config=config,
            warmup=False,
        )
        outputs = list(written.values())
        failed = [output.error for output in outputs if output.error is not None]
        if failed or len(outputs) < len(prompts):
            cause = failed[0] if failed else f"{len(prompts) - len(outputs)} of {len(prompts)} answers are missing"
            raise RunError(f"Continuous batching failed: {cause}.", "Use evaluation.engine: transformers.")
        return [Written(list(output.generated_tokens), [math.exp(p) for p in output.logprobs]) for output in outputs]


class Vllm:
    """vLLM, with the pretrained model and the current adapter, or with a copy of all weights where all are trained.

    Args:
        backbone: whose weights write.
        memory: fraction of the device's memory that vLLM takes.
        module: the package ``vllm``.
    """

    def __init__(self, backbone: Model, memory: float, module: Any) -> None:
        self.backbone = backbone
        self.memory = memory
        self.vllm = module
        self._model: Any = None
        self._weights: list[float] = []
        self._adapters = 0
        self._rank = 0

    def write(self, prompts: Sequence[list[int]]) -> list[Written]:
        sampling = self.vllm.SamplingParams(
            temperature=0.0,
            max_tokens=self.backbone.lengths.target,
            stop_token_ids=self.backbone.eos_ids,
            logprobs=1,
            detokenize=False,
        )
        with tempfile.TemporaryDirectory(prefix="merganser-vllm-") as folder:
            model, adapter = self._prepared(Path(folder))
            inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
            outputs = model.generate(inputs, sampling, lora_request=adapter, use_tqdm=False)
        return [_written(output.outputs[0]) for output in outputs]

    def _prepared(self, folder: Path) -> tuple[Any, Any]:
        """Return vLLM's model with the current weights, and the adapter to ask for."""
        if self.backbone.options.lora is None:
            weights = [float(weight.detach().double().sum()) for weight in self.backbone.trainable().values()]
            if self._model is None or weights != self._weights:
                self._model = None  # its memory is free before the next one is loaded
                self.backbone.save_weights(folder)
                self._model, self._weights = self._load(str(folder)), weights
            return self._model, None
        self.backbone.save_weights(folder)
        rank = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]
        if self._model is None or rank > self._rank:  # methods that stack adapters have a larger one after each task
            self._model, self._rank = None, _rank_for(rank)
            location = str(self.backbone.pretrained_from.source.location)
            self._model = self._load(location, enable_lora=True, max_lora_rank=self._rank)
        self._adapters += 1  # a new number each time: vLLM keeps adapters that it has read
        request = importlib.import_module("vllm.lora.request").LoRARequest
        return self._model, request(f"weights-{self._adapters}", self._adapters, str(folder))

    def _load(self, location: str, **options: Any) -> Any:
        lengths = self.backbone.lengths
        return self.vllm.LLM(
            model=location,
            max_model_len=lengths.input + lengths.target,
            dtype="bfloat16" if self.backbone.precision == "bf16" else "float32",
            gpu_memory_utilization=self.memory,
            seed=0,
            **options,
        )


def _rank_for(rank: int) -> int:
    """Return the smallest rank that vLLM offers for an adapter of this one."""
    return next((offered for offered in (8, 16, 32, 64, 128, 256, 320, 512) if offered >= rank), rank)


def _written(output: Any) -> Written:
    tokens = list(output.token_ids)
    chosen = [place[token].logprob for token, place in zip(tokens, output.logprobs, strict=True)]
    return Written(tokens, [math.exp(value) for value in chosen])


@dataclass
class CheckedEngine:
    """An engine whose answers are compared with those of ``generate`` on a sample of the texts.

    Attributes:
        name: of the engine.
        engine: writes.
        sample: texts of every call that ``generate`` answers too.
        notify: receives a remark where they differ.
    """

    name: str
    engine: Engine
    sample: int
    notify: Callable[[str], None] = field(default=lambda text: None)

    def answers(
        self,
        prompts: Sequence[list[int]],
        generate: Callable[[list[int]], list[Answer]],
        read: Callable[[Written], Answer],
    ) -> list[Answer] | None:
        """Return the engine's answers; ``None`` where too many of the sample differ, so that ``generate`` must write.

        Args:
            prompts: token ids.
            generate: answers prompts of these positions by ``generate``.
            read: makes an answer of what was written.

        Raises:
            RunError: the engine failed.
        """
        written = [read(answer) for answer in self.engine.write(prompts)]
        number = min(self.sample, len(prompts))
        places = [len(prompts) * i // number for i in range(number)]
        expected = dict(zip(places, generate(places), strict=True))
        different = [place for place in places if written[place].text != expected[place].text]
        if different:
            first = different[0]
            example = f"'{_short(written[first].text)}' for '{_short(expected[first].text)}'"
            share = f"evaluation.engine: {self.name} gives {len(different)} of {number} texts another answer"
            if len(different) > TOLERATED * number:
                self.notify(f"{share} (such as {example}): transformers answers this test set instead.")
                return None
            self.notify(f"{share} (such as {example}).")
        return written


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def make_engine(name: EngineName, backbone: Model, rows: int, memory: float, sample: int) -> CheckedEngine:
    """Return an engine other than transformers' own ``generate``; vLLM loads its model when it is first used.

    Args:
        rows: answers that are written at the same time.
        memory: fraction of a device's memory, for vLLM.
        sample: texts of every test set that ``generate`` answers too.

    Raises:
        InputError: vLLM is not installed, or cannot load the model: a .gguf file, or 4 or 8 bits.
    """
    if name == "continuous":
        return CheckedEngine(name, ContinuousBatching(backbone, rows), sample)
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "evaluation.engine: vllm needs the package vllm, which is not installed.",
            "Install it (pip install vllm; it needs a GPU), or use evaluation.engine: transformers.",
        )
    if backbone.options.name.lower().endswith(".gguf"):
        raise InputError(
            "evaluation.engine: vllm cannot read an adapter beside a .gguf file.",
            "Use evaluation.engine: transformers.",
        )
    if backbone.options.weights in ("4bit", "8bit"):
        raise InputError(
            f"evaluation.engine: vllm would read the model in full, and model.weights is {backbone.options.weights}.",
            "Use evaluation.engine: transformers.",
        )
    module = importlib.import_module("vllm")
    return CheckedEngine(name, Vllm(backbone, memory, module), sample)
