"""Packed batches: the loss and gradients of padded ones, and models that cannot be packed are refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from merganser.errors import InputError
from merganser.models.padding import attention_mask, pad
from merganser.models.pairs import PREFERENCE
from merganser.training.aim.callback import AimMerging
from merganser.training.distributed import LocalBatch, num_examples, num_loss_items
from merganser.training.options import TrainingOptions
from merganser.training.packing import check_packing, fill_rows, pack, training_collator
from merganser.training.records import TaskRecords
from merganser.training.rehearsal import without_cache
from merganser.training.trainer import TaskHooks, train_task
from tests.training.trainable import Model

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {**SMALL, "intermediate_size": 32},
    "GPTNeoX": {**SMALL, "intermediate_size": 32, "rotary_pct": 0.5},
    "Qwen3": {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8},
    "Mistral": {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1, "sliding_window": 4},
    "GPT2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "OPT": {**SMALL, "ffn_dim": 32, "max_position_embeddings": 32, "word_embed_proj_dim": 16},
    "Bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Mamba": {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "Jamba": {
        **SMALL,
        "intermediate_size": 32,
        "num_key_value_heads": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 9,
    },
}


@cache
def model_of(architecture: str, attention: str) -> Any:
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{architecture}Config")(**CONFIGS[architecture], **ends)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for weight in made.parameters():  # large, so that a leak shows
        nn.init.normal_(weight, std=0.3)
    return made.eval()


def example(size: int, seed: int) -> dict[str, Any]:
    ids = torch.randint(3, 40, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
    prompt = 1 + seed % (size - 1)
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "length": size}


def collate(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    rows = [feature["input_ids"] for feature in features]
    labels = pad([feature["labels"] for feature in features], -100)
    return {"input_ids": pad(rows, 0), "attention_mask": attention_mask(rows), "labels": labels}


EXAMPLES = [example(size, seed) for seed, size in enumerate((9, 3, 14, 2, 6, 5))]


def loss_and_gradients(model: Any, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    model.zero_grad()
    with without_cache(model):
        loss = model(**batch)["loss"]
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX", "Qwen3", "Mistral", "GPT2"])
def test_losses_and_gradients_are_those_of_padded_batches(architecture: str, attention: str) -> None:
    model = model_of(architecture, attention)
    check_packing(model, "it", "fp32")
    loss, gradients = loss_and_gradients(model, collate(EXAMPLES))
    for length in (None, 0, 20):
        packed_loss, packed_gradients = loss_and_gradients(model, pack(collate(EXAMPLES), length))
        assert packed_loss == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(packed_gradients, gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("Bloom", "takes no position ids"),
        ("Mamba", "takes no position ids"),
        ("Jamba", "reads packed texts as one"),
        ("OPT", "reads packed texts as one"),  # it makes an attention mask of its own
    ],
)
def test_models_that_do_not_keep_texts_apart_are_refused_by_name(architecture: str, why: str) -> None:
    with pytest.raises(InputError, match=f"its-name .*{architecture.lower()}.*{why}"):
        check_packing(model_of(architecture, "eager"), "its-name", "fp32")


class NumbersOn(nn.Module):
    """A decoder that masks as it should and ignores the positions it is given, as some absolute embeddings would."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model_of("GPT2", "eager")
        self.config = self.inner.config
        self.dtype = torch.float32
        self.shifted = nn.Embedding(64, 16)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Any:
        places = self.shifted(torch.arange(input_ids.shape[1]))
        vectors = self.inner.get_input_embeddings()(input_ids) + places
        return self.inner(inputs_embeds=vectors, position_ids=position_ids)


def test_a_model_that_ignores_positions_is_refused() -> None:
    with pytest.raises(InputError, match="another output than it has alone"):
        check_packing(NumbersOn(), "it", "fp32")


def test_check_works_in_bf16() -> None:
    check_packing(model_of("Llama", "sdpa"), "it", "bf16")
    with pytest.raises(InputError, match="reads packed texts as one"):
        check_packing(model_of("Jamba", "eager"), "it", "bf16")


def test_rows_hold_whole_texts_and_are_filled() -> None:
    sizes = [9, 3, 14, 2, 6, 5]
    assert fill_rows(sizes, 14) == [[2], [0, 5], [4, 1, 3]]
    packed = pack(collate(EXAMPLES), 0)
    assert packed["input_ids"].shape == (3, 16)  # a multiple of 8
    assert num_examples(packed) == num_examples(collate(EXAMPLES)) == 6
    assert num_loss_items(packed) == num_loss_items(collate(EXAMPLES), shifted=True)
    one = pack(collate(EXAMPLES), None)
    assert one["input_ids"].shape == (1, 40)
    assert one["input_ids"][0, :9].tolist() == EXAMPLES[0]["input_ids"]


def test_the_first_label_of_a_text_is_not_learned_from_the_text_before_it() -> None:
    everything = [{**item, "labels": list(item["input_ids"])} for item in EXAMPLES]
    model = model_of("Llama", "sdpa")
    loss, _ = loss_and_gradients(model, collate(everything))
    assert loss_and_gradients(model, pack(collate(everything), None))[0] == pytest.approx(loss, abs=1e-5)


def test_flash_attention_gets_one_row() -> None:
    class Flash(nn.Module):
        config = type("Config", (), {"_attn_implementation": "flash_attention_2"})

    options = TrainingOptions(packing="packed")
    assert training_collator(Model(Flash(), collate), options)(EXAMPLES)["input_ids"].shape[0] == 1
    assert training_collator(Model(nn.Linear(1, 1), collate), options)(EXAMPLES)["input_ids"].shape[0] == 3


def test_training_takes_the_same_steps_to_the_same_losses() -> None:
    examples = [example(2 + seed * 7 % 13, seed) for seed in range(10)]
    found = {}
    for packing in ("none", "padding_free", "packed"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIGS["Llama"]))
        model.load_state_dict(model_of("Llama", "sdpa").state_dict())
        options = TrainingOptions(epochs=2, batch=3, accumulation=2, learning_rate=1e-3, warmup=0, packing=packing)
        records = TaskRecords("t")
        outcome = train_task(Model(model, collate), examples, options, seed=1, records=records)
        found[packing] = [signal.loss for signal in records.signals]
        assert (outcome.steps, outcome.examples) == (4, 20)
    assert found["padding_free"] == pytest.approx(found["none"], abs=1e-5)
    assert found["packed"] == pytest.approx(found["none"], abs=1e-5)


def test_memory_rows_are_drawn_before_they_are_packed() -> None:
    collator = training_collator(Model(model_of("Llama", "sdpa"), collate), TrainingOptions(packing="padding_free"))
    batch = LocalBatch.of(EXAMPLES[:4], collator)
    assert num_examples(batch.batch) == 4
    assert batch.items == num_loss_items(collate(EXAMPLES[:4]), shifted=True)


def test_aim_probes_and_merges_as_without_packing() -> None:
    """Examples of probes and rehearsal are drawn as ever; their batches are packed."""
    examples = [example(2 + seed * 7 % 13, seed) for seed in range(12)]
    found = []
    for packing in ("none", "packed"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIGS["Llama"]))
        model.load_state_dict(model_of("Llama", "sdpa").state_dict())
        options = TrainingOptions(steps=6, batch=4, learning_rate=1e-3, warmup=0, packing=packing)
        trained, records, seen = Model(model, collate), TaskRecords("t"), []
        collator = training_collator(trained, options)

        def counting(batch: list[Any], collator: Any = collator, seen: list[int] = seen) -> Any:
            seen.append(len(batch))
            return collator(batch)

        aim = AimMerging(examples[8:], batch=3, interval=2, cold_start=1, collator=counting, seed=0, records=records)
        train_task(trained, examples[:8], options, seed=1, records=records, hooks=TaskHooks([aim]))
        assert len(records.merges) >= 2
        numbers = [signal.probe or 0.0 for signal in records.signals]
        numbers += [value or 0.0 for m in records.merges for value in (m.norm_new, m.norm_old, m.loss_old_after)]
        found.append((numbers, seen, [merge.step for merge in records.merges]))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-4)
    assert found[1][1:] == found[0][1:]


def test_pairs_keep_their_padding() -> None:
    batch = {**collate(EXAMPLES), PREFERENCE: torch.zeros(3, 4)}
    assert pack(batch, None) == batch
