"""The fingerprint of a pretrained model, by which a run recognises it on another machine."""

from __future__ import annotations

import hashlib
import json

from merganser.checkpoints.source import read_json
from merganser.files.digests import combine, file_digest, tensor_digests
from merganser.models.base import Backbone
from merganser.models.source import CONFIG, ModelSource

INCIDENTAL = ("_name_or_path", "transformers_version", "transformers_weights", "architectures", "dtype", "torch_dtype")
"""Keys of a configuration that do not change what a model computes in fp32."""


def fingerprint(backbone: Backbone) -> str:
    """Return the SHA-256 of a pretrained model: every byte of its weights, and its configuration.

    How the tensors are divided among files does not matter. Of a .gguf file, the bytes of the file.

    Raises:
        InputError: a file of the model is damaged.
    """
    source = backbone.pretrained_from.source
    if source.gguf is not None:
        return file_digest(source.gguf)
    tensors = [pair for path in source.weight_files() for pair in tensor_digests(path).items()]
    return combine([*tensors, (CONFIG, _config_digest(source))])


def _config_digest(source: ModelSource) -> str:
    path = source.file(CONFIG, downloaded=True)
    config = {} if path is None else read_json(path)
    content = {key: value for key, value in config.items() if key not in INCIDENTAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
