"""Convert an exported folder to GGUF with llama.cpp's own converter, where it is installed."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError, RunError, nearest

TYPES = ("auto", "f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
"""Number formats that the converter writes."""

LLAMA_CPP = "LLAMA_CPP"
"""Environment variable with the folder of llama.cpp."""

SCRIPTS = {True: "convert_hf_to_gguf.py", False: "convert_lora_to_gguf.py"}
"""Converter of whole models, and of adapters."""

INSTALL = (
    "Clone https://github.com/ggml-org/llama.cpp, install its requirements.txt, and give its folder (--llama-cpp or "
    f"${LLAMA_CPP}); or export without --gguf."
)


@dataclass(frozen=True)
class GgufOptions:
    """What to convert to.

    Attributes:
        type: one of :data:`TYPES`.
        llama_cpp: folder of llama.cpp, or its converter; ``None``: ``$LLAMA_CPP``, then the folders of ``PATH``.
    """

    type: str = "auto"
    llama_cpp: Path | None = None


@dataclass(frozen=True)
class Converter:
    """llama.cpp's converter.

    Attributes:
        command: how it is started.
        type: number format to write.
        whole: it converts whole models, not adapters.
    """

    command: tuple[str, ...]
    type: str
    whole: bool

    @property
    def file_name(self) -> str:
        """Return the name of the file that is written."""
        suffix = "" if self.type == "auto" else f"-{self.type}"
        return f"{'model' if self.whole else 'adapter'}{suffix}.gguf"

    def convert(self, folder: Path, name: str, base: Path | None = None) -> None:
        """Write the file into the folder of an exported model.

        Args:
            name: of the model, for the file's metadata.
            base: folder of the pretrained model of an adapter.

        Raises:
            RunError: the converter fails, which happens with architectures that llama.cpp does not know, or what it
                writes is no model.
        """
        target = folder / self.file_name
        further = ["--model-name", name] if self.whole else [] if base is None else ["--base", str(base)]
        done = subprocess.run(
            [*self.command, str(folder), "--outfile", str(target), "--outtype", self.type, *further],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        said = lines[-1][:300] if lines else f"it ended with code {done.returncode} and wrote nothing"
        if done.returncode != 0:
            raise RunError(
                f"llama.cpp could not convert the model: {said}",
                "Nothing was exported. Update llama.cpp if it should know this architecture, or export without --gguf.",
            )
        if problem := _problem(target):
            raise RunError(
                f"llama.cpp's converter wrote no usable file ({problem}); it ended with: {said}",
                "Nothing was exported. Try the converter by hand, or export without --gguf.",
            )


def find_converter(options: GgufOptions, whole: bool) -> Converter:
    """Return the converter for a whole model or an adapter.

    Raises:
        InputError: a type that it does not write, or it is not found.
    """
    if options.type not in TYPES:
        raise InputError(
            f"The type '{options.type}' is not one that llama.cpp's converter writes.",
            nearest(options.type, TYPES)
            or f"Choose one of {', '.join(TYPES)}; llama-quantize makes the others, such as Q4_K_M, from f16.",
        )
    script = SCRIPTS[whole]
    named = options.llama_cpp or (Path(os.environ[LLAMA_CPP]) if os.environ.get(LLAMA_CPP) else None)
    if named is not None:
        path = named.expanduser()
        path = path / script if path.is_dir() else path
        if path.name != script or not path.is_file():
            raise InputError(f"There is no {script} of llama.cpp in '{named}'.", INSTALL)
        return Converter((sys.executable, str(path.resolve())), options.type, whole)
    if (converter := shutil.which(script)) is None:
        raise InputError(f"llama.cpp's {script} was not found.", INSTALL)
    return Converter((converter,), options.type, whole)


def _problem(path: Path) -> str:
    """Return why a file is no GGUF file with tensors; empty: it is one."""
    if not path.is_file():
        return "there is none"
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        return "it does not begin as a GGUF file"
    version, tensors, _ = struct.unpack("<IQQ", head[4:])
    return "" if version >= 2 and tensors else f"version {version}, {tensors} tensors"
