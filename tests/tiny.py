"""Tiny models for tests: real architectures of a few thousand weights with a tokenizer made on the spot.

Each function writes one folder that ``from_pretrained`` reads and returns its path. Weights depend on ``seed`` only and
the global random state is left as it was. ``texts`` is what the vocabulary is trained on; the byte-level tokenizers of
T5 and Llama read any other text too, the WordPiece one of BERT falls back to letters.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TEXTS: tuple[str, ...] = (
    "the film was good and the play was great",
    "a bad film with a weak story and a poor end",
    "the team won the match in the last minute",
    "the bank cut its rates and the market rose",
    "positive negative sport business world science",
    "is this text positive or negative? answer:",
    "what is the topic of this text? topic:",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _byte_level(texts: Sequence[str], specials: list[str], size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *(f" {text}" for text in texts)], trainer)
    return tokenizer


def _write(folder: Path, build: Callable[[], Any], tokenizer: Any, seed: int) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_t5(folder: Path, texts: Sequence[str] = TEXTS, seed: int = 0, layers: int = 2, *, width: int = 32) -> Path:
    """A T5 of ``layers`` + ``layers``, byte-level BPE of at most 400 pieces, ``</s>`` after every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    raw = _byte_level(texts, ["<pad>", "</s>", "<unk>"], 400)
    raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=4,
        dropout_rate=0.1,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return _write(folder, lambda: T5ForConditionalGeneration(config), tokenizer, seed)


def tiny_llama(
    folder: Path,
    texts: Sequence[str] = TEXTS,
    seed: int = 0,
    layers: int = 2,
    *,
    pad: bool = False,
    chat: bool = False,
    width: int = 32,
) -> Path:
    """A Llama of ``layers``, with ``<s>`` before every text; without a padding token unless ``pad``."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"] + (["<pad>"] if pad else [])
    turns = ["<|user|>", "<|assistant|>", "<|end|>"] if chat else []
    raw = _byte_level(texts, specials + turns, 400)
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="<|end|>" if chat else "</s>",
        unk_token="<unk>",
        pad_token="<pad>" if pad else None,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _write(folder, lambda: LlamaForCausalLM(config), tokenizer, seed)


def tiny_bert(folder: Path, texts: Sequence[str] = TEXTS, seed: int = 0, layers: int = 2, *, width: int = 32) -> Path:
    """A BERT encoder of ``layers``, lower-case WordPiece, at most 128 positions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = sorted({*string.ascii_lowercase, *(letter for word in words for letter in word)})
    # Not trained: the trainer of WordPiece numbers its pieces in another order every time.
    ranked = sorted(words, key=lambda word: (-words[word], word))
    pieces = dict.fromkeys([*specials, *letters, *(f"##{letter}" for letter in letters), *ranked])
    raw = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(list(pieces)[:400])}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizer, splitter
    raw.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return _write(folder, lambda: BertModel(config), tokenizer, seed)


def tiny_vit(folder: Path, size: int = 8, channels: int = 1, seed: int = 0) -> Path:
    """A vision transformer of 2 layers, width 32, patches of 2 x 2 pixels, with its image processor."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    config = ViTConfig(
        image_size=size,
        patch_size=2,
        num_channels=channels,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    processor = ViTImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )
    return _write(folder, lambda: ViTModel(config, add_pooling_layer=False), processor, seed)


def tiny_clip(folder: Path, texts: Sequence[str] = TEXTS, size: int = 8, seed: int = 0) -> Path:
    """A CLIP of 2 + 2 layers, width 32, for RGB images and a byte-level vocabulary."""
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    raw = _byte_level(texts, ["<pad>", "</s>", "<s>"], 400)
    raw.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("</s>", 1), ("<s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=sizes
        | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
        # With 2 for its end, CLIP would take the vector at the largest token, as its first models did.
        | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
        vision_config=sizes | {"image_size": size, "patch_size": 2, "num_channels": 3},
        projection_dim=16,
        initializer_factor=5.0,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    written = _write(folder, lambda: CLIPModel(config), tokenizer, seed)
    processor.save_pretrained(written)
    return written
