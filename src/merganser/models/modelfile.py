"""The ``Modelfile`` of an exported decoder, from which ``ollama create`` makes a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser.models.base_reference import BaseReference
from merganser.models.causal import Causal
from merganser.models.chat_template import ChatTemplate
from merganser.models.ollama_template import marks_of

MODELFILE = "Modelfile"

SMALLEST_CONTEXT = 2048
"""Tokens that every version of Ollama keeps without being told."""

RAW = "{{ .Prompt }}"
"""Ollama's template that puts nothing around a prompt."""


def quoted(text: str) -> str | None:
    """Return text as a quoted value of a Modelfile; ``None`` if it cannot be quoted without a change.

    There is no escape character: a value ends at the first three quotation marks, and characters that are not
    printable are dropped.
    """
    if '"""' in text or not all(letter.isprintable() or letter in "\n\t" for letter in text):
        return None
    plain = not text or "\n" in text or '"' in text
    return f'"""{text}"""' if plain else f'"{text}"'


def modelfile(backbone: Causal, source: Sequence[str]) -> str:
    """Return the Modelfile of an exported decoder.

    Args:
        source: the lines that name the weights (:func:`weights_lines`).
    """
    lines = ["# ollama create NAME -f Modelfile", *source]
    if backbone.chat is None:
        lines += ["# The model was trained on texts as they are.", f"TEMPLATE {quoted(RAW)}"]
    else:
        lines += _chat_template(backbone.chat.template, backbone.tokenizer)
    lines += _system(getattr(backbone.options, "system", None))
    for name, value in _parameters(backbone):
        lines.append(f"PARAMETER {name} {value}")
    return "\n".join(lines) + "\n"


def weights_lines(whole: bool, gguf: str | None, base: BaseReference) -> list[str]:
    """Return the lines that name the weights, which are in the folder of the Modelfile.

    Args:
        whole: the folder holds a whole model, not an adapter.
        gguf: name of the GGUF file in it, if there is one.
        base: of an adapter.
    """
    if whole:
        return [f"FROM ./{gguf}" if gguf else "FROM ."]
    where = f"./base/{base.short}"
    if base.on_hub:
        revision = f" --revision {base.revision}" if base.revision else ""
        how = f"# Get the pretrained model first: hf download {base.name}{revision} --local-dir {where}"
    else:
        how = f"# Put the pretrained model ({base.gguf or base.short}) there first."
    return [how, f"FROM {where}", f"ADAPTER ./{gguf}" if gguf else "ADAPTER ."]


def _chat_template(template: ChatTemplate, tokenizer: Any) -> list[str]:
    """Return the lines about a chat template: in Ollama's language, if it can be written so."""
    marks = marks_of(template, tokenizer)
    value = None if marks is None else quoted(marks.go())
    if marks is None or value is None:
        return [
            "# No TEMPLATE: the chat template of the tokenizer does more than mark turns. Ollama takes its own if it",
            "# knows this one. Check with `ollama show --template NAME`: {{ .Prompt }} alone means that it does not.",
        ]
    lines = ["# The chat template of the tokenizer, as the model was trained: it makes the same text of conversations."]
    if "system" not in marks.around:
        lines.append("# It has no system prompts; what is sent as one is left out.")
    if "tools" in template.text:
        lines.append(
            "# It does not describe tools. Without TEMPLATE, Ollama takes one that does, if it knows this one."
        )
    return [*lines, f"TEMPLATE {value}"]


def _system(text: str | None) -> list[str]:
    if not text:
        return []
    value = quoted(text)
    if value is None:
        return ["# The system prompt of the run cannot be quoted here: send it with every request."]
    return [f"SYSTEM {value}"]


def _parameters(backbone: Causal) -> list[tuple[str, str]]:
    """Return the pretrained model's own generation settings as parameters of Ollama, which has other defaults."""
    settings: Any = backbone.pretrained_from.settings.generation

    def setting(name: str, default: float) -> float:
        value = getattr(settings, name, None)
        return default if value is None else value

    parameters: list[tuple[str, float]] = [("repeat_penalty", setting("repetition_penalty", 1.0))]
    if getattr(settings, "do_sample", False):
        parameters += [("temperature", setting("temperature", 1.0)), ("top_k", setting("top_k", 50))]
        parameters += [("top_p", setting("top_p", 1.0)), ("min_p", setting("min_p", 0.0))]
    else:
        parameters.append(("temperature", 0))
    if (context := backbone.lengths.input + backbone.lengths.target) > SMALLEST_CONTEXT:
        parameters.append(("num_ctx", context))
    stops = [quoted(str(token)) for token in backbone.tokenizer.convert_ids_to_tokens(backbone.eos_ids)]
    return [
        *((name, f"{value:g}") for name, value in parameters),
        *(("stop", stop) for stop in stops if stop is not None),
    ]
