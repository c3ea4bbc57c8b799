"""The header of a model card, which the Hugging Face hub reads: licence, languages, base, data, scores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merganser.files.markdown import one_line
from merganser.runs.card import History, hub_data, unique

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

UNKNOWN = "unknown"
"""What the hub calls a licence that is not known."""

PIPELINES = {"seq2seq": "text2text-generation", "causal": "text-generation", "matcher": "text-classification"}
"""Kind of a model -> what it does, as the hub names it."""

TAGS = ("merganser", "continual-learning")

METRICS: dict[str, tuple[str, str, str | None]] = {
    "accuracy": ("accuracy", "accuracy", None),
    "exact_match": ("exact_match", "exact match", None),
    "rouge_l": ("rouge", "ROUGE-L", "rougeL"),
    "f1": ("f1", "F1 over words", None),
}
"""Text score -> type, name and configuration as the hub names them."""


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        name: of the model, for the table of results.
        library: that loads it.
        pipeline: what it does, as the hub names it.
        base_id: hub id of the pretrained model; ``None``: it is not on the hub, or not known to be.
        adapter: it holds an adapter, not a whole model.
    """

    name: str
    library: str
    pipeline: str
    base_id: str | None
    adapter: bool


def pipeline_tag(kind: str, modality: str) -> str:
    """Return what a model does, as the hub names it."""
    return "image-classification" if modality == "image" else PIPELINES[kind]


def card_head(subject: Subject, history: History | None) -> str:
    """Return the YAML between (and with) the lines of dashes at the top of a card.

    Args:
        history: what led to the model; ``None``: no records are at hand.
    """
    from huggingface_hub import ModelCardData

    licence = licence_of(history)
    tasks = [] if history is None else history.tasks
    metrics = [] if history is None else [history.metric_of(task.name) for task in tasks if task.test_examples]
    results = [] if history is None else _results(history, subject.pipeline)
    data = ModelCardData(
        language=licence.get("language"),
        license=licence.get("license", UNKNOWN),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        library_name=subject.library,
        pipeline_tag=subject.pipeline,
        base_model=subject.base_id,
        base_model_relation=None if subject.base_id is None else "adapter" if subject.adapter else "finetune",
        datasets=unique(name for task in tasks if (name := hub_data(task))) or None,
        metrics=unique(_metric(name)[0] for name in metrics) or None,
        tags=list(TAGS),
        model_name=(one_line(subject.name) or "model") if results else None,
        eval_results=results or None,
    )
    return "\n".join(["---", data.to_yaml(line_break="\n"), "---", ""])


def licence_of(history: History | None) -> dict[str, Any]:
    """Return licence and languages of the pretrained model as they were recorded when the run began."""
    recorded = {} if history is None else history.info.config.get("resolved", {}).get("base_card")
    return recorded if isinstance(recorded, dict) else {}


def licence_section(history: History | None) -> str:
    """Return the section on the licence, as Markdown."""
    licence = licence_of(history)
    if "license" not in licence:
        text = "Not known: the files of the pretrained model name no licence. Find it out before you pass this on."
    else:
        text = f"That of the pretrained model, `{licence['license']}`; the data may have further terms."
    return f"## Licence\n\n{text}\n"


def _results(history: History, pipeline: str) -> list[EvalResult]:
    """Return one result per task that was measured, as fractions."""
    from huggingface_hub import EvalResult

    matrix = history.matrix
    names = [hub_data(task) for task in history.tasks]
    results = []
    for task, data in zip(history.tasks, names, strict=True):
        score = matrix.score(-1, task.name)
        if score is None:
            continue
        kind, title, config = _metric(history.metric_of(task.name))
        # Results of one data set would be one: two tasks of the same one are told apart by their names.
        data_set = data if data is not None and names.count(data) == 1 else _identifier(task.name)
        results.append(
            EvalResult(
                task_type=pipeline,
                dataset_type=data_set,
                dataset_name=one_line(task.name),
                dataset_split="test",
                metric_type=kind,
                metric_name=title,
                metric_config=config,
                metric_value=round(score.value, 6),
            )
        )
    return results


def _metric(name: str) -> tuple[str, str, str | None]:
    return METRICS.get(name, (_identifier(name), one_line(name), None))


def _identifier(text: str) -> str:
    """Return text as an identifier of letters, digits, ``_``, ``-`` and ``.``."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "task"
