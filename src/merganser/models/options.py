"""The ``model`` section of a configuration.

No torch here: the command reads and checks these options before anything slow is imported.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from merganser.options import StrictOptions
from merganser.streams.answers import Candidates

Kind = Literal["seq2seq", "causal", "matcher"]
Engine = Literal["transformers", "continuous", "vllm"]
"""What writes the answers of a causal model, see :mod:`merganser.models.engines`."""
Precision = Literal["auto", "fp32", "bf16"]
Pooling = Literal["mean", "cls", "last"]

MATCHER_ONLY = ("pooling", "temperature", "candidates", "label_prompt")


class LoraOptions(StrictOptions):
    """Low-rank adapters (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models").

    A linear layer ``y = W x`` becomes ``y = W x + s B A x`` with ``s = alpha / r``; only ``A`` and ``B`` are trained.
    """

    model_config = ConfigDict(frozen=True)

    r: int = Field(default=8, ge=1, description="rank of the factors A (r x in) and B (out x r)")
    alpha: float = Field(default=32, gt=0, allow_inf_nan=False, description="the update is scaled by alpha / r")
    rslora: bool = Field(
        default=False,
        description="scale the update by alpha / sqrt(r), which keeps its size at high ranks (Kalajdzievski 2023)",
    )
    dora: bool = Field(
        default=False,
        description="also train the norm of each row of the updated weights (DoRA, Liu et al. 2024); not with methods "
        "that merge the updates B A",
    )
    dropout: float = Field(
        default=0.05, ge=0, lt=1, description="fraction of a layer's inputs zeroed before A, in training"
    )
    targets: Literal["auto", "all-linear", "mlp"] | list[str] = Field(
        default="auto",
        description="linear layers that get factors: 'auto' (query and value projections of attention), 'all-linear' "
        "(all but the output layer), 'mlp' (those of the blocks outside of attention), or a list of layer names or "
        "endings of names, such as 'q_proj' or 'attention.output.dense'",
    )

    @property
    def scaling(self) -> float:
        """The factor ``s`` on the update ``B A``."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    def alpha_at(self, rank: int) -> float:
        """Return the alpha with which an adapter of another rank has the same scaling."""
        return self.scaling * (math.sqrt(rank) if self.rslora else rank)

    @field_validator("targets")
    @classmethod
    def _targets(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list):
            if not value:
                raise ValueError("an empty list trains nothing; give layer names, or 'auto'")
            if any(not target.strip(".") for target in value):
                raise ValueError("a target is an empty name")
            if len(set(value)) != len(value):
                raise ValueError("a target is given twice")
        return value


class ModelOptions(StrictOptions):
    """Which pretrained model learns, and which of its weights."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1, description="hub id, folder, or a .gguf file")
    kind: Kind = Field(
        description="seq2seq (encoder-decoder) and causal (decoder): generates text; matcher: an encoder whose text "
        "or image embedding is compared with frozen embeddings of the labels"
    )
    lora: LoraOptions | None = Field(default=LoraOptions(), description="low-rank adapters; null trains all weights")
    adapter: str | None = Field(
        default=None,
        min_length=1,
        description="adapter to begin with: folder or hub id. Its factors are trained on, with its rank, scaling and "
        "layers in place of the defaults of lora",
    )
    precision: Precision = Field(
        default="auto",
        description="number format of forward passes; auto: bf16 if the device has it natively, else fp32",
    )
    weights: Literal["auto", "fp32", "bf16", "8bit", "4bit"] = Field(
        default="auto",
        description="how the pretrained weights are held in memory; auto: bf16 where they are stored so, frozen (lora) "
        "and multiplied in bf16, else fp32. 8bit and 4bit (QLoRA: NF4, doubly quantised) need bitsandbytes",
    )
    dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="dropout of the pretrained model's own layers in training; null: as in its configuration. 0 is "
        "faster (the adapters have their own dropout)",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto",
        description="how attention is computed; auto: as transformers chooses. On a CPU, eager is faster for "
        "short texts in bf16",
    )
    pooling: Pooling = Field(
        default="mean",
        description="matcher: how token vectors become one vector; last is for texts. CLIP-like models have their "
        "own pooling",
    )
    temperature: float = Field(
        default=0.05, gt=0, allow_inf_nan=False, description="matcher: cosines are divided by it before the softmax"
    )
    candidates: Candidates = Field(
        default="task",
        description="matcher: choose among the labels of the example's task, or among all labels seen so far",
    )
    label_prompt: str = Field(
        default="{label}",
        description="matcher: what the text encoder reads for a label, such as 'a photo of a {label}'; {label} is "
        "replaced by its text",
    )
    chat_template: Literal["auto"] | bool = Field(
        default="auto",
        description="causal: put the input as a user's message into the tokenizer's chat template; auto: if it has "
        "one. Conversations need one",
    )
    system: str | None = Field(
        default=None,
        min_length=1,
        description="causal, with a chat template: system prompt of texts and conversations that have none",
    )
    revision: str | None = Field(default=None, min_length=1, description="branch, tag or commit of a hub id")

    @model_validator(mode="after")
    def _fits_kind(self) -> ModelOptions:
        if self.kind != "matcher":
            # Compared with the defaults, not with what was written: a fully resolved file repeats every default.
            changed = [key for key in MATCHER_ONLY if getattr(self, key) != type(self).model_fields[key].default]
            if changed:
                raise ValueError(f"'{changed[0]}' is an option of kind 'matcher', not of '{self.kind}'")
        if self.lora is None and self.adapter is not None:
            raise ValueError("the adapter (adapter) would be trained on, and lora is null")
        if self.lora is None and self.weights not in ("auto", "fp32"):
            raise ValueError(
                f"weights: {self.weights} holds frozen weights, and without lora all are trained: small steps would be "
                "lost. Use lora, or weights: fp32"
            )
        if (self.weights, self.precision) == ("bf16", "fp32"):
            raise ValueError("weights: bf16 are multiplied in bf16, and precision is fp32. Omit one of them")
        if "{label}" not in self.label_prompt:
            raise ValueError("label_prompt has no {label}: all labels would be the same")
        if self.kind != "causal" and self.chat_template is True:
            raise ValueError(f"'chat_template' is an option of kind 'causal', not of '{self.kind}'")
        if self.system is not None and (self.kind != "causal" or self.chat_template is False):
            raise ValueError(
                "'system' is put into a chat template: it needs kind 'causal', and no chat_template: false"
            )
        if self.revision is not None and self.name.lower().endswith(".gguf"):
            raise ValueError("'revision' is for hub ids; a .gguf file has none")
        return self
