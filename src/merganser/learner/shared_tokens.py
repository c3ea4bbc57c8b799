"""Tokens of texts and vectors of labels that are the same for several runs: made once, kept under digests.

A file has what one call reads, such as the training texts or the test texts of a task, and a digest of its rows, so
that a damaged file is noticed and made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merganser import processes
from merganser.files.atomic import make_folder, new_file, write_bytes
from merganser.learner.shared_parts import SharedParts, digest
from merganser.models.base import Backbone
from merganser.models.parts import Parts

NOT_OF_TOKENS = {
    "lora",
    "adapter",
    "precision",
    "weights",
    "dropout",
    "attention",
    "pooling",
    "temperature",
    "candidates",
}
"""Options of a model on which no token depends."""

NOT_OF_VECTORS = {"lora", "adapter", "temperature", "candidates"}
"""Options of a model on which no label vector depends: the pretrained model computes it."""


class SharedTokens(Parts):
    """Takes tokens and label vectors from the folder of the parts, and adds those that are not there.

    Args:
        parts: whose folder it is; it counts the processor seconds that were saved.
        backbone: the model that tokenises and embeds.
    """

    shares = True

    def __init__(self, parts: SharedParts, backbone: Backbone) -> None:
        self._parts = parts
        self._device = backbone.device
        lengths = [backbone.lengths.input, backbone.lengths.target]
        common = [parts.fingerprint, parts.tokenizer, parts.versions, lengths]
        self._of_tokens = digest(common, backbone.options.model_dump(mode="json", exclude=NOT_OF_TOKENS))
        options = backbone.options.model_dump(mode="json", exclude=NOT_OF_VECTORS)
        held = [backbone.weights, backbone.device.type, parts.machine]
        self._of_vectors = digest(common, options, held, backbone.options.lora is None)

    def tokens(self, what: str, content: Sequence[Any], make: Callable[[], list[Any]]) -> list[Any]:
        if not content:
            return make()
        path = self._parts.folder / "tokens" / f"{digest(self._of_tokens, what, content)}.jsonl"
        if (stored := self._read_tokens(path)) is not None:
            return stored
        began = time.process_time()
        rows = make()
        spent = time.process_time() - began
        if rows:
            lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()
            header = {"sha256": hashlib.sha256(lines).hexdigest(), "processor_seconds": spent}
            make_folder(path.parent)
            write_bytes(path, json.dumps(header).encode() + b"\n" + lines, shared=True)
        return rows

    def _read_tokens(self, path: Path) -> list[Any] | None:
        try:
            first, _, lines = path.read_bytes().partition(b"\n")
            header = json.loads(first)
            if header["sha256"] != hashlib.sha256(lines).hexdigest():
                return None
            rows = [json.loads(line) for line in lines.splitlines()]
            self._parts.saved_seconds += header["processor_seconds"] * processes.world_size()  # each rank makes its own
            return rows
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or not whole: it can be made again

    def vectors(self, content: Sequence[Any], make: Callable[[], Tensor]) -> Tensor:
        if not content:
            return make()
        key = digest(self._of_vectors, torch.get_num_threads(), content)
        path = self._parts.folder / "labels" / f"{key}.safetensors"
        if (stored := self._read_vectors(path)) is not None:
            return stored.to(self._device)
        began = time.process_time()
        # Every rank computes all vectors by itself, without a collective: one may find what another has just made.
        made = make()
        if not processes.is_main():
            return made
        whole = made.detach().cpu().contiguous()
        metadata = {"sha256": digest(whole), "processor_seconds": repr(time.process_time() - began)}
        make_folder(path.parent)
        with new_file(path, shared=True) as temporary:
            save_file({"vectors": whole}, temporary, metadata=metadata)
        return made

    def _read_vectors(self, path: Path) -> Tensor | None:
        try:
            with safe_open(path, framework="pt") as file:
                vectors: Tensor = file.get_tensor("vectors")
                metadata = file.metadata()
            if metadata["sha256"] != digest(vectors):
                return None
            self._parts.saved_seconds += float(metadata["processor_seconds"]) * processes.world_size()
            return vectors
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None  # likewise
