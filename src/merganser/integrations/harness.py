"""Tasks of lm-evaluation-harness, asked of a run's model as it is: the harness's own prompts, filters and metrics."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merganser.errors import InputError, first_line, nearest
from merganser.models.base import Backbone, eval_mode
from merganser.models.chat_template import ChatTemplate, failed
from merganser.models.generative import GenerativeBackbone
from merganser.models.precision import autocast
from merganser.streams.conversation import Conversation, Turn
from merganser.streams.task import Example
from merganser.streams.watch_options import HarnessOptions
from merganser.training.determinism import isolated_random

FEWSHOT_SEED = 1234
"""Seed of the examples shown before each question; that of the harness's own command."""


@dataclass(frozen=True)
class LoadedHarness:
    """A task of the harness, read.

    Attributes:
        options: as given, with the metric that was chosen where none was.
        tasks: the harness's tasks by name; several where the name is that of a group.
        examples: the questions and their answers, in the order in which they are asked.
        source: package, version and hash of all questions, for the record.
    """

    options: HarnessOptions
    tasks: dict[str, Any]
    examples: tuple[Example, ...]
    source: dict[str, str]


@dataclass(frozen=True)
class HarnessScores:
    """Answers to the questions, in their order, and the score of each in [0, 1]."""

    answers: tuple[str, ...]
    values: tuple[float, ...]


def check_model(backbone: Backbone, name: str) -> None:
    """Refuse a model that writes no text.

    Raises:
        InputError: it does not.
    """
    if not isinstance(backbone, GenerativeBackbone):
        raise InputError(
            f"Watched task '{name}' is one of lm-evaluation-harness, and {backbone.options.name} writes no text.",
            "Use a model of kind 'causal' or 'seq2seq', or watch a file.",
        )


@functools.lru_cache(maxsize=64)
def load(options: HarnessOptions) -> LoadedHarness:
    """Read a task of the harness with its examples; its data set may be downloaded.

    Raises:
        InputError: the package is not installed, there is no such task or metric, or it cannot be read.
    """
    tasks = _tasks(options)
    metric = _metric(options, tasks)
    examples: list[Example] = []
    digest = hashlib.sha256()
    with _quiet():
        for name, task in tasks.items():
            _build(name, task, options.limit)
            for instances in _by_example(task.instances):
                first = instances[0]
                answer = _text_of(task, first.doc, task.doc_to_target(first.doc))
                examples.append(Example(str(first.args[0]), answer, f"{name}/{first.doc_id}"))
                digest.update(repr([instance.args for instance in instances]).encode() + answer.encode() + b"\0")
    import lm_eval

    read = f"lm-evaluation-harness {lm_eval.__version__}, {options.task} sha256:{digest.hexdigest()}"
    return LoadedHarness(options.model_copy(update={"metric": metric}), tasks, tuple(examples), {"test": read})


def score(backbone: Backbone, options: HarnessOptions, batch: int) -> HarnessScores:
    """Have the harness ask the model as it is, and score its answers.

    Every process answers all questions. Random numbers elsewhere are not touched.

    Args:
        batch: texts per forward pass.

    Raises:
        InputError: the score of an example is none in [0, 1], or as :func:`load`.
    """
    assert isinstance(backbone, GenerativeBackbone)
    loaded = load(options)
    from lm_eval.evaluator import evaluate

    with _quiet():
        model = _model(backbone, batch)
    asked = {"limit": options.limit, "bootstrap_iters": 0, "apply_chat_template": options.chat_template}
    with eval_mode(backbone.module), torch.no_grad(), autocast(backbone.device, backbone.precision):  # noqa: SIM117
        with isolated_random(0), _quiet():
            results = evaluate(model, {"tasks": dict(loaded.tasks)}, **asked)
    metric, _, chosen_filter = (loaded.options.metric or "").partition(",")
    answers, values = [], []
    for name, task in loaded.tasks.items():
        samples = results["samples"][name]
        wanted = chosen_filter or samples[0]["filter"]
        for sample in sorted(
            (entry for entry in samples if entry["filter"] == wanted), key=lambda entry: entry["doc_id"]
        ):
            answers.append(_answer(sample))
            values.append(_value(sample[metric], metric, options.task, task))
    return HarnessScores(tuple(answers), tuple(values))


def _tasks(options: HarnessOptions) -> dict[str, Any]:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"The watched task '{options.task}' needs the package lm_eval (lm-evaluation-harness).",
            "Install it: pip install 'merganser[lm-eval]'.",
        ) from error
    with _quiet():
        manager = TaskManager(include_path=options.folder, include_defaults=options.folder is None)
        if options.folder is not None and options.task not in manager.all_tasks:
            manager = TaskManager(include_path=options.folder)
        if options.task not in manager.all_tasks:
            known = sorted(manager.all_tasks)
            raise InputError(
                f"lm-evaluation-harness has no task '{options.task}'"
                + (f" here or in '{options.folder}'." if options.folder else "."),
                nearest(options.task, known) or "`lm-eval ls tasks` lists them.",
            )
        try:
            loaded: dict[str, Any] = dict(manager.load([options.task])["tasks"])
        except Exception as error:  # whatever its definition, its data set or the hub raises
            raise InputError(
                f"The task '{options.task}' of lm-evaluation-harness cannot be read: "
                f"{type(error).__name__}: {first_line(error)}.",
                "Correct its definition, or see whether its data set can be downloaded.",
            ) from error
    for name, task in loaded.items():
        _check_kind(name, task)
        shown = task.get_config("num_fewshot")
        if shown is None or (options.num_fewshot is not None and shown != 0):  # as the harness's command does
            task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _check_kind(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        what = "runs code that the model writes" if getattr(task, "UNSAFE_CODE", False) else "has images"
        raise InputError(f"The task '{name}' of lm-evaluation-harness {what}.", "Watch another.")


def _metric(options: HarnessOptions, tasks: dict[str, Any]) -> str:
    """Return the metric to use: one of means of numbers per example of which higher ones are better."""
    usable = [
        [
            metric
            for metric, aggregate in task.aggregation().items()
            if getattr(aggregate, "__name__", "") == "mean" and task.higher_is_better().get(metric, True)
        ]
        for task in tasks.values()
    ]
    common = [metric for metric in usable[0] if all(metric in others for others in usable)]
    wanted = (options.metric or "").partition(",")[0]
    if wanted and wanted in common:
        return options.metric or ""
    if wanted or not common:
        raise InputError(
            f"The task '{options.task}' of lm-evaluation-harness has no metric"
            + (f" '{wanted}'" if wanted else "")
            + " that is a mean over examples in which more is better.",
            f"It has {', '.join(common)}." if common else "Watch another task.",
        )
    return common[0]


def _build(name: str, task: Any, limit: int | None) -> None:
    try:
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    except Exception as error:  # whatever its definition raises
        raise InputError(
            f"The task '{name}' of lm-evaluation-harness cannot be asked: {type(error).__name__}: {first_line(error)}.",
            "Correct its definition.",
        ) from error


def _by_example(instances: Sequence[Any]) -> list[list[Any]]:
    """Group the requests by the example that they are of, in order."""
    groups: dict[int, list[Any]] = {}
    for instance in instances:
        groups.setdefault(instance.doc_id, []).append(instance)
    return [groups[key] for key in sorted(groups)]


def _text_of(task: Any, doc: Any, target: Any) -> str:
    """Return the correct answer as text; of a choice by its number, the choice."""
    if isinstance(target, int) and getattr(task, "OUTPUT_TYPE", "") == "multiple_choice":
        choices = task.doc_to_choice(doc)
        target = choices[target] if 0 <= target < len(choices) else target
    if isinstance(target, list | tuple) and target:
        target = target[0]
    return str(target).strip() or "(nothing)"


def _answer(sample: dict[str, Any]) -> str:
    """Return the model's answer: what it wrote, or of several continuations the likeliest."""
    answers, asked = sample["filtered_resps"], sample["arguments"]
    if answers and isinstance(answers[0], tuple | list):
        best = max(range(len(answers)), key=lambda number: float(answers[number][0]))
        return str(asked[best][1]).strip()
    return str(answers[0]).strip() if answers else ""


def _value(value: Any, metric: str, name: str, task: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number <= 1.0:
        raise InputError(
            f"The metric '{metric}' of the task '{name}' of lm-evaluation-harness is {value!r} of one example, and "
            "scores are in [0, 1].",
            f"Choose another of its metrics: {', '.join(task.aggregation())}.",
        )
    return number


class _Asked:
    """The transformers model of a backbone as the harness calls it; it stays as it is.

    The harness gives lengths and ends of answers itself, and would tie weights anew.
    """

    def __init__(self, backbone: GenerativeBackbone) -> None:
        self._base = backbone.base
        self._settings = copy.deepcopy(backbone.decoding)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._base(*given, **named)

    def generate(self, **named: Any) -> Any:
        settings = copy.deepcopy(self._settings)
        # Of an encoder-decoder model the harness means the length of both texts together.
        settings.max_new_tokens = named.pop("max_length") - named["input_ids"].shape[1]
        others = settings.update(**named)
        return self._base.generate(generation_config=settings, **others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def _model(backbone: GenerativeBackbone, batch: int) -> Any:
    """Return the harness's model that calls this one."""
    from lm_eval.models.huggingface import HFLM

    template = ChatTemplate.of(backbone.tokenizer, backbone.options.name) if backbone.has_chat_template else None

    class AskedModel(HFLM):
        """The harness's model, with chat templates run in bounds."""

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            if template is None or not add_generation_prompt:
                raise InputError(
                    f"{backbone.options.name} cannot ask this task through a chat template.",
                    "Leave chat_template of the watched task out.",
                )
            turns = tuple(Turn(message["role"], message["content"]) for message in chat_history)
            (rendered,) = template.prompts([Conversation(turns)])
            if "error" in rendered:
                raise failed(backbone.options.name, rendered["error"])
            return str(rendered["text"])

    kind = "causal" if backbone.kind == "causal" else "seq2seq"
    return AskedModel(
        pretrained=_Asked(backbone), tokenizer=copy.deepcopy(backbone.tokenizer), backend=kind, batch_size=batch
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the harness's progress bars and messages; its errors are raised."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
