"""Every reader of files over mutated files: it reads them, or raises `InputError` or `RunError`, and nothing else.

Longer, for instance ten minutes for each reader::

    MERGANSER_FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merganser.checkpoints.adapters.source import read_adapter
from merganser.checkpoints.mergekit_file import translate
from merganser.checkpoints.recipe_file import parse, read_recipe, read_yaml_file
from merganser.checkpoints.source import open_checkpoint
from merganser.config import load_config
from merganser.errors import InputError, RunError
from merganser.files.safetensors_file import read_header
from merganser.runs import RunDirectory
from merganser.runs.reading import read_lines, read_record
from merganser.runs.record import KeptExample, RowFile, ScoresFile, SignalRecord
from merganser.runs.record import MergeRecord as Merge
from merganser.streams.images.picture import Picture
from merganser.streams.images.sources import read_images
from merganser.streams.loading import load_task
from merganser.streams.task_options import TaskOptions
from tests.checkpoints.conftest import write_file, write_folder
from tests.report.conftest import make_run

EXAMPLES = int(os.environ.get("MERGANSER_FUZZ_EXAMPLES", "25"))

TOKENS = [
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800", b"\xed\xa0\x80", b"\r", b"\n", b"\t", b",", b";", b'"'),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0.5", b"1" * 400, b"9" * 5000, b"'", b"-" + b"9" * 19),
    *(b"[", b"]", b"{", b"}", b"{}", b"[]", b"[" * 2000, b'{"a":' * 500, b"- " * 300, b":", b": ", b"? ", b"&a "),
    *(b"<<: ", b"!!int ", b"!!binary ", b"!!set {a}", b"!!timestamp x", b"2024-13-45", b"2024-01-01", b".inf", b"|"),
    *(b"input", b"output", b'""', b"a" * 5000, b"{input}", b"{0.__class__}", b"../x", b"/dev/zero", b"1:2:3", b"*a"),
    *(b"0x" + b"f" * 99, b"#"),
]  # fmt: skip


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, float, bytes]]:
    """Replace, at up to five places (fractions of the length), a piece by a token, itself twice or random bytes."""
    token = st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6), st.just(b"<twice>"))
    place = st.floats(0, 1, allow_nan=False)
    length = st.one_of(st.just(0.0), st.floats(0, 0.3, allow_nan=False))
    return draw(st.lists(st.tuples(place, length, token), min_size=1, max_size=5))


def mutated(seed: bytes, changes: list[tuple[float, float, bytes]]) -> bytes:
    for place, length, token in changes:
        start = int(place * len(seed))
        # Beginnings and ends of words and numbers are the more interesting places.
        words = [match.start() for match in re.finditer(rb"\b", seed)]
        start = min(words, key=lambda word: abs(word - start)) if words and start % 2 else start
        end = min(len(seed), start + int(length * length * len(seed)))
        piece = seed[start:end] * 2 if token == b"<twice>" else token
        seed = seed[:start] + piece + seed[end:]
    return seed


ROWS = [{"input": "a text", "output": "yes", "id": 7}, {"input": "übung\n2", "output": "no", "n": [1.5]}] * 2
RUN_YAML = """model: {name: some/model, kind: causal, lora: {r: 4, targets: [q_proj]}}
stream:
  limit: 10
  tasks:
    - {name: first, train: a.json, labels: [x, y], prompt: "Read {input}"}
    - {name: second, train: b.csv, test: c.jsonl, answer: rank, labels: {a: one, b: two}}
method: {name: aim, batch: 4, threshold_factor: 1.5, ablation: {only_at_end: true}}
memory: {share: 0.02, sampler: per_label}
training: {steps: 20, learning_rate: 1e-3}
seed: 3
"""
RECIPE = """rule: ties
base: base
models: [{model: a, weight: 0.5}, {model: b, weight: {layers: [0, 1]}}]
options: {density: 0.4}
overrides: [{match: "*.mlp.*", density: 1.0}]
dtype: bf16
"""
MERGEKIT = """merge_method: dare_ties
base_model: base
models:
  - {model: a, parameters: {weight: [0.1, 0.9], density: 0.5}}
  - {model: {model: {path: b, revision: main}}, parameters: {weight: {value: 0.5}}}
parameters: {normalize: true, int8_mask: 1}
dtype: float16
tokenizer_source: base
"""


def read_task(path: Path) -> None:
    load_task(TaskOptions(name="task", train=path.name), path.parent)


def read_mergekit(path: Path) -> None:
    parse(translate(read_yaml_file(path), path.name)[0], path.name)


def read_run_yaml(path: Path) -> None:
    (path.parent / "tasks").mkdir(exist_ok=True)
    RunDirectory.open(path.parent)


def jsonl(values: list[Any]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def parquet(folder: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    rows = [{"input": row["input"], "output": row["output"]} for row in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "seed.parquet")
    return (folder / "seed.parquet").read_bytes()


def adapter(folder: Path) -> bytes:
    """An adapter's folder; returns its configuration."""
    prefix = "base_model.model.layers.0.q_proj"
    tensors = {f"{prefix}.lora_A.weight": np.ones((2, 4), np.float32), f"{prefix}.lora_B.weight": np.ones((4, 2))}
    write_file(
        folder / "adapter_model.safetensors", {name: value.astype(np.float32) for name, value in tensors.items()}
    )
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "base",
        "alpha_pattern": {"layers.0.q_proj": 8}, "rank_pattern": {}, "use_rslora": False, "bias": "none",
    }  # fmt: skip
    return json.dumps(config).encode()


def sharded(folder: Path) -> bytes:
    """A sharded checkpoint's folder; returns its index."""
    tensors = {name: np.ones((2, 2), np.float32) for name in ("a", "b", "c")}
    write_folder(folder / "model", tensors, shards=2)
    for file in (folder / "model").iterdir():
        file.rename(folder / file.name)
    return (folder / "model.safetensors.index.json").read_bytes()


def safetensors(folder: Path) -> bytes:
    write_file(folder / "seed.safetensors", {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.float32)})
    return (folder / "seed.safetensors").read_bytes()


def row(folder: Path) -> bytes:
    run = make_run(["a", "b"])
    file = RowFile(row=1, tasks=run.tasks[:1], scores=run.scores.rows[1], metrics=run.scores.metrics)
    return file.model_dump_json().encode()


def run_yaml(folder: Path) -> bytes:
    import yaml

    return yaml.safe_dump(make_run(["a"]).info.model_dump()).encode()


def picture(kind: str) -> Callable[[Path], bytes]:
    """A small image with metadata, in one of the formats that pillow reads."""

    def encode(folder: Path) -> bytes:
        from PIL import Image

        values = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation
        file = io.BytesIO()
        Image.fromarray(values).save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        return file.getvalue()

    return encode


def read_picture(path: Path) -> None:
    image = Picture(path.name, path=path)
    image.check()
    image.decode("RGB")


def read_digits(path: Path) -> None:
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    labels.write_bytes(b"\0\0\x08\x01" + (2).to_bytes(4, "big") + b"\x00\x01")
    read_images(path, path.name, ["zero", "one"])


IDX = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (2, 3, 3)) + bytes(range(18))
KEPT = [{"task": "a", "input": "text", "output": "yes", "id": "", "image": ""}]
READERS: dict[str, tuple[str, bytes | Callable[[Path], bytes], Callable[[Path], Any]]] = {
    "csv": ("x.csv", b'input,output\n"a ""quoted"" text",yes\nplain,no\n', read_task),
    "tsv": ("x.tsv", b"input\toutput\na text\tyes\nplain\tno\n", read_task),
    "json": ("x.json", json.dumps(ROWS).encode(), read_task),
    "jsonl": ("x.jsonl", jsonl(ROWS), read_task),
    "parquet": ("x.parquet", parquet, read_task),
    "run file": ("run.yaml", RUN_YAML.encode(), load_config),
    "recipe": ("merge.yaml", RECIPE.encode(), read_recipe),
    "mergekit file": ("mergekit.yml", MERGEKIT.encode(), read_mergekit),
    "safetensors": ("x.safetensors", safetensors, read_header),
    "adapter config": ("adapter_config.json", adapter, lambda path: read_adapter(str(path.parent))),
    "index": ("model.safetensors.index.json", sharded, lambda path: open_checkpoint(str(path.parent))),
    "run.yaml": ("run.yaml", run_yaml, read_run_yaml),
    "row.json": ("row.json", row, lambda path: read_record(path, RowFile)),
    "scores.json": ("scores.json", lambda _: make_run(["a", "b"]).scores.model_dump_json().encode(),
                    lambda path: read_record(path, ScoresFile)),
    "merges.jsonl": ("merges.jsonl", lambda _: jsonl([m.model_dump() for m in make_run(["a", "b"]).merges[:3]]),
                     lambda path: read_lines(path, Merge)),
    "signals.jsonl": ("s.jsonl", lambda _: jsonl([s.model_dump() for s in make_run(["a"]).signals["a"][:4]]),
                       lambda path: read_lines(path, SignalRecord)),
    "memory.jsonl": ("memory.jsonl", jsonl(KEPT), lambda path: read_lines(path, KeptExample)),
    "idx": ("x-images-idx3-ubyte", IDX, read_digits),
    "idx, packed": ("x-images-idx3-ubyte.gz", gzip.compress(IDX, mtime=0), read_digits),
    **{kind: (f"x.{kind.lower()}", picture(kind), read_picture) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")},
}  # fmt: skip
"""Name -> file name, a whole file (or what makes one in a folder), and its reader."""


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_damaged_files(name: str, tmp_path: Path) -> None:
    file, seed, read = READERS[name]
    whole = seed if isinstance(seed, bytes) else seed(tmp_path)
    path = tmp_path / file
    path.write_bytes(whole)
    read(path)  # the whole file is read, or nothing would be tested

    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    @given(edits())
    @example([(0.0, 0.0, b"\xff\xfe")])
    @example([(1.0, 0.0, b"\0")])
    def one(changes: list[tuple[float, float, bytes]]) -> None:
        path.write_bytes(mutated(whole, changes))
        with contextlib.suppress(InputError, RunError):
            read(path)

    one()
