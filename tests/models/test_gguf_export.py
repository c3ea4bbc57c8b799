"""GGUF files through llama.cpp's converter: found, called and checked; a stand-in script takes its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merganser.errors import InputError, RunError
from merganser.models.gguf_export import Converter, GgufOptions, find_converter

STAND_IN = """#!/usr/bin/env python3
import json, struct, sys
from pathlib import Path
arguments = sys.argv[1:]
target = Path(arguments[arguments.index("--outfile") + 1])
target.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0))
target.with_name("arguments.json").write_text(json.dumps(arguments))
"""


def write_script(folder: Path, text: str = STAND_IN, name: str = "convert_hf_to_gguf.py") -> Path:
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(text)
    script.chmod(0o755)
    return script


def test_the_converter_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(InputError, match=r"convert_hf_to_gguf.py was not found.*--llama-cpp"):
        find_converter(GgufOptions("f16"), whole=True)
    with pytest.raises(InputError, match=r"There is no convert_lora_to_gguf\.py"):
        find_converter(GgufOptions("f16", tmp_path), whole=False)
    script = write_script(tmp_path / "llama.cpp")
    for given in (script, script.parent):
        assert find_converter(GgufOptions("f16", given), whole=True).command[1:] == (str(script),)
    monkeypatch.setenv("PATH", str(script.parent))
    assert find_converter(GgufOptions("f16"), whole=True).command == (str(script),)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "elsewhere"))  # named: nothing else is looked for
    with pytest.raises(InputError, match="elsewhere"):
        find_converter(GgufOptions("f16"), whole=True)


@pytest.mark.parametrize(("wrong", "hint"), [("F16", "f16"), ("q4_k_m", "llama-quantize")])
def test_types(wrong: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        find_converter(GgufOptions(wrong), whole=True)


def test_what_the_converter_is_given(tmp_path: Path) -> None:
    whole = Converter((str(write_script(tmp_path / "bin")),), "q8_0", whole=True)
    whole.convert(tmp_path, "support")
    file = str(tmp_path / "model-q8_0.gguf")
    called = json.loads((tmp_path / "arguments.json").read_text())
    assert called == [str(tmp_path), "--outfile", file, "--outtype", "q8_0", "--model-name", "support"]
    adapter = Converter(whole.command, "auto", whole=False)
    adapter.convert(tmp_path, "support", tmp_path / "base")
    called = json.loads((tmp_path / "arguments.json").read_text())
    assert called[1:3] == ["--outfile", str(tmp_path / "adapter.gguf")]
    assert called[-2:] == ["--base", str(tmp_path / "base")]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('INFO: begin'); sys.exit('Model FooForCausalLM is not supported')", "FooForCausalLM"),
        ("print('done')", "there is none"),
        (STAND_IN.replace('b"GGUF"', 'b"GGUX"'), "does not begin as a GGUF file"),
        (STAND_IN.replace("3, 1, 0", "3, 0, 0"), "0 tensors"),
    ],
)
def test_a_conversion_that_fails(script: str, words: str, tmp_path: Path) -> None:
    found = find_converter(GgufOptions("f16", write_script(tmp_path / "llama.cpp", script)), whole=True)
    with pytest.raises(RunError, match=words):
        found.convert(tmp_path, "support")
