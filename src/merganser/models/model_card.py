"""The model card of an exported folder: the tasks learned, and code for inference in plain transformers."""

from __future__ import annotations

from collections.abc import Mapping

from merganser.files.markdown import code_block, code_span, escaped
from merganser.models.base import Backbone
from merganser.models.base_reference import BaseReference
from merganser.models.generative import GenerativeBackbone
from merganser.models.matcher import Matcher
from merganser.models.options import LoraOptions
from merganser.models.stacking import total_rank
from merganser.models.weight_format import code_that_holds
from merganser.runs.card import History, record_sections
from merganser.runs.card_head import Subject, card_head, licence_section, pipeline_tag
from merganser.streams.answers import AnswerSpec

LABELS = "labels.json"
LABEL_VECTORS = "label_vectors.safetensors"

DECODING = (
    *("max_new_tokens", "do_sample", "num_beams", "eos_token_id", "pad_token_id", "bos_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id"),
)
"""Generation settings that a run sets."""

SIDES = ("padding_side", "truncation_side")

AUTO_CLASS = {"seq2seq": "AutoModelForSeq2SeqLM", "causal": "AutoModelForCausalLM", "matcher": "AutoModel"}


def model_card(
    backbone: Backbone,
    specs: Mapping[str, AnswerSpec],
    whole: bool,
    base: BaseReference,
    history: History | None = None,
    name: str = "model",
) -> str:
    """Return Markdown with the header that the Hugging Face hub reads: the model, its tasks, and code that uses it.

    Args:
        specs: how each task is answered, by name.
        whole: the folder holds a whole model, not an adapter.
        base: the pretrained model.
        history: the records of the run; ``None``: the card is without what they tell.
        name: of the exported model.
    """
    library = "sentence-transformers" if isinstance(backbone, Matcher) else "transformers"
    pipeline = pipeline_tag(backbone.kind, backbone.modality)
    hub_id = base.name if base.on_hub else None
    subject = Subject(name, library if whole else "peft", pipeline, hub_id, not whole)
    code = {"matcher": _matcher_code, "seq2seq": _seq2seq_code, "causal": _causal_code}[backbone.kind]
    if backbone.modality == "image":
        code = _vision_code
    lines = [
        card_head(subject, history),
        f"# {escaped(base.short)}, continually fine-tuned",
        "",
        *_description(backbone, len(specs), whole, base),
        *_answers(backbone, specs),
        "",
        "## Use",
        "",
        code_block("\n".join([*_loading_code(backbone, None if whole else base), *code(backbone, specs)]), "python"),
    ]
    if history is not None:
        lines += [record_sections(history, "RUN")]
    return "\n".join([*lines, licence_section(history)])


def _description(backbone: Backbone, tasks: int, whole: bool, base: BaseReference) -> list[str]:
    options = backbone.options
    if options.lora is None:
        title = "All weights of the model, fine-tuned"
    else:
        rank = total_rank(backbone.model)
        update = f"a {_kind_of_lora(options.lora)} update (r {rank}, alpha {options.lora.alpha_at(rank):g})"
        title = f"The model with {update} merged into its weights" if whole else f"An adapter: {update} for the model"
    of = f"; the pretrained model is {code_span(base.pinned)}" if base.on_hub else ""
    lines = [f"{title} on {tasks} task{'s' * (tasks != 1)}, one after another, with Merganser{of}.", ""]
    if base.gguf:
        lines += ["The pretrained weights were de-quantised from a GGUF file.", ""]
    if not (whole or base.on_hub):
        lines += [*_placeholder(base), ""]
    return lines


def _answers(backbone: Backbone, specs: Mapping[str, AnswerSpec]) -> list[str]:
    """Return the table of how each task is answered."""
    lines = ["| task | answered by | labels |", "|---|---|---|"]
    for name, spec in specs.items():
        if backbone.kind == "matcher":
            how = "nearest label"
        else:
            how = "likeliest label" if spec.mode == "rank" else "generation"
        labels = ", ".join(spec.labels) if spec.labels is not None else "free text"
        lines.append(f"| {escaped(name)} | {how} | {escaped(labels)} |")
    return lines


def _placeholder(base: BaseReference) -> list[str]:
    """Return what to do about the name of a pretrained model that is not on the hub."""
    origin, what = ("file", f"file {code_span(base.gguf)}") if base.gguf else ("folder", "model")
    return [
        f"The pretrained model was read from a {origin}, so this adapter names a placeholder for it, "
        f"{code_span(base.name)}: put the {what} there (a folder beside the program that loads the adapter), or write "
        "its own place into `base_model_name_or_path` of `adapter_config.json`. "
        "`merganser export --base-model OWNER/NAME` names a model of the hub."
    ]


def _kind_of_lora(options: LoraOptions) -> str:
    return "DoRA" if options.dora else "rsLoRA" if options.rslora else "LoRA"


def _loading_code(backbone: Backbone, base: BaseReference | None) -> list[str]:
    """Return the lines that load the model.

    Args:
        base: of an adapter; ``None``: the folder holds a whole model.
    """
    auto = AUTO_CLASS[backbone.kind]
    whole = base is None
    where = "folder"
    if base is not None:
        where = repr(base.name)
        if base.gguf:
            where += f", gguf_file={base.gguf!r}"
        elif base.revision is not None:
            where += f", revision={base.revision!r}"
    held, imports = ("dtype=torch.float32", []) if whole else code_that_holds(backbone.weights, backbone.precision)
    load = [f"model = {auto}.from_pretrained({where}, {held})"]
    if isinstance(backbone, GenerativeBackbone):
        load += _decoding_code(backbone)
    load.append("model = model.eval()" if whole else "model = PeftModel.from_pretrained(model, folder).eval()")
    return [
        "import json",
        "from pathlib import Path",
        "",
        "import torch",
        *([] if whole else ["from peft import PeftModel"]),
        *(["from safetensors.torch import load_file"] if backbone.kind == "matcher" else []),
        *(["from PIL import Image"] if backbone.modality == "image" else []),
        f"from transformers import {auto}, "
        + ", ".join([{"text": "AutoTokenizer", "image": "AutoImageProcessor"}[backbone.modality], *imports])
        + (", GenerationConfig" if isinstance(backbone, GenerativeBackbone) else ""),
        "",
        'folder = "."  # the folder this card is in',
        *(
            ['processor = AutoImageProcessor.from_pretrained(folder, backend="pil")']
            if backbone.modality == "image"
            else ["tokenizer = AutoTokenizer.from_pretrained(folder)", *_tokenizer_code(backbone)]
        ),
        *load,
        f'info = json.loads((Path(folder) / "{LABELS}").read_text())',
        'files = ["an-image.png", "another.png"]'
        if backbone.modality == "image"
        else 'texts = ["A text to answer", "Another one"]',
    ]


def _tokenizer_code(backbone: Backbone) -> list[str]:
    """Return the lines that set the tokenizer up as the run does, where the exported one differs."""
    settings = backbone.pretrained_from.settings.tokenizer
    original = {} if settings is None else settings.attributes
    lines = [f'tokenizer.{side} = "right"' for side in SIDES if original.get(side) != "right"]
    if original.get("pad_token") is None:
        lines.append("tokenizer.pad_token = tokenizer.eos_token  # padding is masked")
    return lines


def _decoding_code(backbone: GenerativeBackbone) -> list[str]:
    """Return the lines that make ``generate`` decode as the run does, whatever the model's own settings."""
    settings = {key: value for key, value in backbone.decoding.to_diff_dict().items() if key in DECODING}
    return [
        "model.generation_config = GenerationConfig(  # greedy, with the longest answer of the run",
        *(f"    {key}={settings[key]!r}," for key in DECODING if key in settings),
        ")",
    ]


def _matcher_code(backbone: Backbone, specs: Mapping[str, AnswerSpec]) -> list[str]:
    pooled = {
        "mean": "(hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)",
        "cls": "hidden[:, 0]",
        "last": "hidden[torch.arange(len(hidden)), mask.sum(1) - 1]",
    }[backbone.options.pooling]
    return [
        f"task = {next(iter(specs), '')!r}",
        f'vectors = load_file(Path(folder) / "{LABEL_VECTORS}")[task]',
        'batch = tokenizer(texts, padding=True, truncation=True, max_length=info["max_length"], return_tensors="pt")',
        'mask = batch["attention_mask"]',
        "with torch.no_grad():",
        '    hidden = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state',
        f"    embedding = torch.nn.functional.normalize({pooled}, dim=-1)",
        '    probability = (embedding @ vectors.T / info["temperature"]).softmax(-1)',
        'answers = [info["tasks"][task]["labels"][i] for i in probability.argmax(-1).tolist()]',
        "print(answers)",
    ]


def _vision_code(backbone: Backbone, specs: Mapping[str, AnswerSpec]) -> list[str]:
    pooled = {"mean": "hidden.mean(1)", "cls": "hidden[:, 0]"}[backbone.options.pooling]
    if hasattr(backbone.model, "get_image_features"):
        vectors = ["    embedding = model.get_image_features(pixel_values=pixels).pooler_output"]
    else:
        vectors = [
            "    hidden = model(pixel_values=pixels).last_hidden_state",
            "    if hidden.ndim == 4:",
            "        hidden = hidden.flatten(2).transpose(1, 2)",
            f"    embedding = {pooled}",
        ]
    mode = backbone.tokenizer.mode
    return [
        f"task = {next(iter(specs), '')!r}",
        f'vectors = load_file(Path(folder) / "{LABEL_VECTORS}")[task]',
        f"images = [Image.open(file).convert({mode!r}) for file in files]",
        'pixels = processor(images=images, return_tensors="pt")["pixel_values"]',
        "with torch.no_grad():",
        *vectors,
        "    embedding = torch.nn.functional.normalize(embedding, dim=-1)",
        '    probability = (embedding @ vectors.T / info["temperature"]).softmax(-1)',
        'answers = [info["tasks"][task]["labels"][i] for i in probability.argmax(-1).tolist()]',
        "print(answers)",
    ]


def _seq2seq_code(backbone: Backbone, specs: Mapping[str, AnswerSpec]) -> list[str]:
    lines = [
        'batch = tokenizer(texts, padding=True, truncation=True, max_length=info["max_length"], return_tensors="pt")',
        "generated = model.generate(**batch)",
        "answers = tokenizer.batch_decode(generated, skip_special_tokens=True)",
        "print(answers)",
    ]
    ranked = _ranked(specs)
    if ranked is not None:
        lines += [
            "",
            "# A task with labels: the likeliest one",
            f'labels = info["tasks"][{ranked!r}]["labels"]',
            "",
            "def likelihood(text, label):",
            '    batch = tokenizer([text], truncation=True, max_length=info["max_length"], return_tensors="pt")',
            '    targets = tokenizer(text_target=[label], return_tensors="pt")["input_ids"]',
            "    with torch.no_grad():",
            "        return -model(**batch, labels=targets).loss.item() * targets.shape[1]",
            "",
            "choices = [max(labels, key=lambda label: likelihood(text, label)) for text in texts]",
            "print(choices)",
        ]
    return lines


def _causal_code(backbone: Backbone, specs: Mapping[str, AnswerSpec]) -> list[str]:
    if backbone.has_chat_template:
        tokenize = [
            "def tokenize(text):",
            f"    chat = [{_system_message(backbone)}" + '{"role": "user", "content": text}]',
            "    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)",
            '    return tokenizer(prompt, add_special_tokens=False)["input_ids"]',
        ]
    else:
        tokenize = [
            "def tokenize(text):",
            '    return tokenizer(text.rstrip(" "), truncation=True, max_length=info["max_length"])["input_ids"]',
        ]
    lines = [
        'tokenizer.padding_side = "left"',
        "",
        *tokenize,
        "",
        'batch = tokenizer.pad({"input_ids": [tokenize(text) for text in texts]}, return_tensors="pt")',
        "generated = model.generate(**batch)",
        'answers = tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)',
        "print([answer.strip() for answer in answers])",
    ]
    ranked = _ranked(specs)
    if ranked is not None:
        after_break = "True" if backbone.has_chat_template else 'text.rstrip(" ").endswith("\\n")'
        lines += [
            "",
            "# A task with labels: the likeliest one",
            f'task = info["tasks"][{ranked!r}]',
            "",
            "def likelihood(text, i):",
            f'    label = task["token_ids_after_break" if {after_break} else "token_ids"][i]',
            "    ids = tokenize(text) + label",
            "    with torch.no_grad():",
            "        scores = model(input_ids=torch.tensor([ids])).logits[0, -len(label) - 1 : -1].log_softmax(-1)",
            "    return scores[torch.arange(len(label)), label].sum().item()",
            "",
            'best = [max(range(len(task["labels"])), key=lambda i: likelihood(text, i)) for text in texts]',
            'choices = [task["labels"][i] for i in best]',
            "print(choices)",
        ]
    return lines


def _system_message(backbone: Backbone) -> str:
    """Return the system prompt of the run as the beginning of a list of messages."""
    system = backbone.options.system
    return "" if system is None else f'{{"role": "system", "content": {system!r}}}, '


def _ranked(specs: Mapping[str, AnswerSpec]) -> str | None:
    """Return the first task that is answered by ranking, if any."""
    return next((name for name, spec in specs.items() if spec.mode == "rank"), None)
