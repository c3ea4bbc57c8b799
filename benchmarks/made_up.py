"""Made-up text-to-text tasks and a tiny T5 that learns them; ``evidence.py made-up`` writes both, and fetches nothing.

A text is four words, ``small fox sees river``: a size, an animal, a verb and a place, eight words of each. A task names
itself in the first word and asks for something about the text: ``backwards: small fox sees river`` -> ``river sees fox
small``. All tasks read the same texts and differ in what is to be written, so a model that no longer heeds the first
word has forgotten. Answers are right or wrong as a whole (exact match).

The T5 (two layers on each side, 96 wide, 0.4 million weights, one token per word) starts at random weights and is first
trained on six tasks of the family that are not in the stream. It then knows the words and how to read and write, as a
pretrained model does. On the stream all of its weights are trained, without LoRA.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

Words = list[str]
Task = Callable[[Words], Words]

CLASSES: tuple[Words, ...] = (
    ["big", "calm", "dark", "fast", "kind", "old", "small", "young"],
    ["bear", "cat", "dog", "fox", "goat", "horse", "mouse", "wolf"],
    ["finds", "guards", "hears", "likes", "misses", "paints", "sees", "visits"],
    ["bridge", "castle", "forest", "garden", "harbour", "lake", "market", "river"],
)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]
EXAMPLES = {"train": 256, "dev": 60, "read": 100, "test": 100}
"""Of a task. Those named read were the test texts of earlier studies and are not written."""

STEPS, BATCH, LEARNING_RATE = 1000, 32, 1e-3
"""Of the training before the stream."""


def _book(name: str) -> Task:
    """Return a task that writes for every word another one of its class, always the same."""
    book: dict[str, str] = {}
    for words in CLASSES:
        cycle = random.Random(f"{name} {words[0]}").sample(words, len(words))
        book |= dict(zip(cycle, [cycle[-1], *cycle[:-1]], strict=True))
    return lambda words: [book[word] for word in words]


STREAM: dict[str, Task] = {
    "backwards": lambda words: words[::-1],
    "red": _book("red"),
    "swap": lambda words: [words[1], words[0], words[3], words[2]],
    "letters": lambda words: [NUMBERS[len(words[1])], NUMBERS[len(words[3])]],
    "sort": lambda words: sorted(words[:3]),
}
PRETRAINING: dict[str, Task] = {
    "copy": lambda words: words,
    "rest": lambda words: words[1:],
    "rotate": lambda words: [*words[1:], words[0]],
    "ends": lambda words: [words[3], words[0]],
    "blue": _book("blue"),
    "size": lambda words: [NUMBERS[len(words[0])]],
}


def texts(seed: str) -> Iterator[Words]:
    """Yield all 4,096 texts once, in a random order."""
    for number in random.Random(seed).sample(range(8**4), 8**4):
        yield [words[number // 8**place % 8] for place, words in enumerate(CLASSES)]


def examples(name: str, task: Task, seed: str) -> Iterator[tuple[str, str]]:
    """Yield what the model reads and what it is to write."""
    for words in texts(seed):
        yield f"{name}: {' '.join(words)}", " ".join(task(words))


def write_stream(out: Path) -> None:
    """Write three files per task; no text of a task is in two of them."""
    for name, task in STREAM.items():
        rows = examples(name, task, seed=name)
        for split, number in EXAMPLES.items():
            lines = (json.dumps({"input": text, "output": answer}) + "\n" for text, answer in islice(rows, number))
            text = "".join(lines)
            if split != "read":
                (out / f"{name}-{split}.jsonl").write_text(text, encoding="utf-8")


def _tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token for each word of the family."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = [*STREAM, *PRETRAINING, *(word for words in CLASSES for word in words), *NUMBERS]
    tokens = dict.fromkeys(["<pad>", "</s>", "<unk>", ":", *words])
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _pretrain(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> float:
    """Train on the tasks that are not in the stream and return the loss of the last batch."""
    import torch

    rows = [row for name, task in PRETRAINING.items() for row in examples(name, task, seed="pretraining")]
    chooser = random.Random("pretraining")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.05)
    model.train()
    loss = torch.zeros(())
    for _ in range(STEPS):
        read, written = zip(*chooser.sample(rows, BATCH), strict=True)
        inputs = tokenizer(list(read), padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = tokenizer(list(written), padding=True, return_tensors="pt")["input_ids"]
        loss = model(**inputs, labels=labels.masked_fill(labels == tokenizer.pad_token_id, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def write_model(out: Path) -> None:
    """Build a T5 of random weights, train it on the tasks that are not in the stream and write its folder."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    loss = _pretrain(model, tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: {model.num_parameters():,} weights, loss {loss:.3f} after {STEPS} steps")
