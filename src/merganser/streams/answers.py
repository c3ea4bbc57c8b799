"""How a task is answered: one object that tasks, records, backbones, evaluation and methods share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, PlainSerializer

from merganser.errors import InputError, first_repeated, nearest
from merganser.metrics.function import MetricFunction, is_function_name, metric_name
from merganser.streams.decoding import unicode_problem
from merganser.streams.dpo import METRIC, DpoOptions
from merganser.streams.metric_source import metric_names, name_problem, recorded_name
from merganser.streams.prompts import fill_with_text, prompt_fields

AnswerMode = Literal["generate", "rank"]
MetricName = Literal["accuracy", "exact_match", "rouge_l", "f1"]
Metric = Annotated[str | MetricFunction, PlainSerializer(metric_name, return_type=str)]
"""One of :data:`MetricName`, a function, or the name of one; a record has only the function's name."""
Candidates = Literal["task", "seen"]


@dataclass(frozen=True)
class AnswerSpec:
    """Describe how the texts of a task are put to a model, answered and scored.

    Attributes:
        labels: the closed set of answers, in a fixed order, or ``None`` for free text.
        label_texts: texts that a matcher reads in place of labels; it reads all other labels themselves.
        mode: ``generate`` (greedy decoding) or ``rank`` (the likeliest label). A matcher always ranks.
        metric: how answers are scored; one of the text scores of :mod:`merganser.metrics.text`, or a function of
            answers, references and inputs (:data:`merganser.metrics.function.MetricFunction`), or the name of one
            (:mod:`merganser.streams.metric_source`).
        prompt: template that was applied to the examples' inputs; later texts go through it too.
        synonyms: other ways to write an answer -> what it counts as when answers are scored.
        dpo: of a task of preferences, how it is learned; it has no labels and is scored by
            :data:`~merganser.streams.dpo.METRIC`. ``None``: the task has one correct answer per text.

    Raises:
        InputError: a mode or metric that does not exist or does not fit, a prompt without a field, an empty or repeated
            label, ranking or ``accuracy`` without labels, a text that is empty or for a label that does not exist,
            text that is no valid Unicode.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    labels: tuple[str, ...] | None = None
    label_texts: Mapping[str, str] = field(default_factory=dict)
    mode: AnswerMode = "generate"
    metric: Metric = "exact_match"
    prompt: str = "{input}"
    synonyms: Mapping[str, str] = field(default_factory=dict)
    dpo: DpoOptions | None = None

    def __post_init__(self) -> None:
        if self.dpo is not None:
            self._check_preference()
        self._check_choices()
        if not prompt_fields(self.prompt):
            raise InputError(f"The prompt {self.prompt!r} has no field.", "Put {input} where the text goes.")
        self._check_unicode()
        if self.labels is None:
            self._check_free_text()
        else:
            self._check_labels(self.labels)

    def _check_choices(self) -> None:
        modes = get_args(AnswerMode)
        if self.mode not in modes:
            hint = nearest(self.mode, modes) or f"Use one of {', '.join(modes)}."
            raise InputError(f"The answer mode '{self.mode}' does not exist.", hint)
        if isinstance(self.metric, str) and self.dpo is None:
            if not is_function_name(self.metric) and name_problem(self.metric):
                hint = nearest(self.metric, metric_names()) or f"Use one of {', '.join(metric_names())}."
                raise InputError(f"The metric '{self.metric}' does not exist.", hint)
            object.__setattr__(self, "metric", recorded_name(self.metric))

    def _check_preference(self) -> None:
        if self.labels is not None or self.mode != "generate":
            raise InputError(
                "A task of preferences has no labels: its answers are free text.",
                "Leave 'labels' and 'answer' out.",
            )
        if self.metric not in (METRIC, "exact_match"):
            raise InputError(
                f"A task of preferences is scored by {METRIC}, not by '{metric_name(self.metric)}'.",
                "Leave 'metric' out.",
            )
        object.__setattr__(self, "metric", METRIC)  # in place of the default

    def _check_unicode(self) -> None:
        for what, texts in (
            ("prompt", [self.prompt]),
            ("label", self.labels or ()),
            ("text of a label", self.label_texts.values()),
        ):
            for text in texts:
                if problem := unicode_problem(text):
                    raise InputError(f"The {what} {text!r} is no valid Unicode: {problem}.", "Correct it.")

    def _check_free_text(self) -> None:
        if self.mode == "rank" or self.metric == "accuracy":
            what = "answer mode 'rank'" if self.mode == "rank" else "metric 'accuracy'"
            raise InputError(
                f"The {what} needs a label set, and the answers are free text.",
                "Give 'labels' (a list, or 'train' for all outputs of the training texts), or choose another.",
            )
        if self.label_texts:
            raise InputError("There are label texts and no labels.", "Give the labels too.")

    def _check_labels(self, labels: tuple[str, ...]) -> None:
        if not labels or any(not label.strip() for label in labels):
            raise InputError("The label set is empty or holds an empty label.", "Give every label a name.")
        if (twice := first_repeated(labels)) is not None:
            raise InputError(f"The label '{twice}' is in the label set twice.", "Name every label once.")
        known = set(labels)
        for label, text in self.label_texts.items():
            if label not in known:
                raise InputError(f"There is a text for '{label}', which is not a label.", nearest(label, labels))
            if not text.strip():
                raise InputError(
                    f"The text for the label '{label}' is empty.", "Describe the label in a few words, or leave it out."
                )

    def counts_as(self, answer: str) -> str:
        """Return the answer that an answer counts as when it is scored: itself, or that of which it is a synonym.

        Letter case and surrounding white space do not count, except with the metric ``accuracy``.
        """
        if not self.synonyms:
            return answer
        fold = str.strip if self.metric == "accuracy" else lambda text: text.strip().casefold()
        return next((other for synonym, other in self.synonyms.items() if fold(synonym) == fold(answer)), answer)

    def text_of(self, label: str) -> str:
        """Return the text that a matcher reads for ``label``."""
        return self.label_texts.get(label, label)

    def prompted(self, text: str) -> str:
        """Return ``text`` as the model reads it for this task.

        Raises:
            InputError: the prompt has several fields, so that one text cannot fill it.
        """
        return fill_with_text(self.prompt, text)

    def require_labels(self, what: str) -> tuple[str, ...]:
        """Return the labels.

        Args:
            what: what needs them, for the message.

        Raises:
            InputError: the task is answered in free text.
        """
        if self.labels is None:
            raise InputError(
                f"{what} needs a label set, and the task has none (where an answer occurs only once, answers are "
                "taken as free text).",
                "Set labels: train, or --labels train, to take all answers of its training examples as labels; or use "
                "kind 'seq2seq' or 'causal'.",
            )
        return self.labels

    def check_output(self, output: str) -> None:
        """Refuse an output that is not a label.

        Raises:
            InputError: naming the nearest label.
        """
        if self.labels is not None and output not in self.labels:
            raise InputError(
                f"The output '{output}' is not in the task's label set of {len(self.labels)}.",
                nearest(output, self.labels) or f"Known labels: {', '.join(self.labels[:10])}.",
            )

    def with_labels_of(self, others: Iterable[AnswerSpec]) -> AnswerSpec:
        """Return this spec with the labels of other tasks as further candidates: first theirs, in order, then its own.

        A task that is answered in free text is returned unchanged.
        """
        if self.labels is None:
            return self
        specs = [*others, self]
        labels = dict.fromkeys(label for spec in specs for label in spec.labels or ())
        texts = {label: text for spec in specs for label, text in spec.label_texts.items()}
        return replace(self, labels=tuple(labels), label_texts=texts)


@dataclass(frozen=True)
class CandidatePolicy:
    """Decide which labels are candidates for an answer; training, inference and scoring use the same decision.

    Attributes:
        candidates: the option ``model.candidates``: ``task`` (the labels of the text's task) or ``seen`` (those of all
            tasks learned so far).
        per_task_models: whether each task has separate weights. These were not trained on the labels of other tasks,
            so the candidates are the labels of the text's task in any case.
    """

    candidates: Candidates = "task"
    per_task_models: bool = False

    @property
    def over_all_learned(self) -> bool:
        """Whether the labels of all tasks learned are candidates (class-incremental inference)."""
        return self.candidates == "seen" and not self.per_task_models

    @property
    def seen_without_effect(self) -> bool:
        """Whether ``seen`` was chosen and has no effect, because each task has separate weights."""
        return self.candidates == "seen" and self.per_task_models

    def spec(self, task: AnswerSpec, learned: Iterable[AnswerSpec]) -> AnswerSpec:
        """Return how a task is answered once the given tasks are learned."""
        return task.with_labels_of(learned) if self.over_all_learned else task
