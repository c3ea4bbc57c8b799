"""Merging against mergekit and against ``cp``: whole processes, in turn, medians.

    python benchmarks/merge.py --work FOLDER --mergekit-python PYTHON --layers 44

Generates a base and two fine-tuned models of a Llama shape (44 layers: 2.2 billion parameters, 4.4 GB in bfloat16) in
FOLDER, where it looks for them again. For every rule it runs, one after the other and ``--pairs`` times: this package
with numba, this package in plain numpy, mergekit, and ``cp`` of one model. Every run is a process of its own, timed
from start to end with the processor time and the peak of resident memory that the kernel counts. The models are read
before every run, so that they are in the page cache, and the modules of both environments are compiled to bytecode
before the first, as after an ordinary installation. ``--mergekit-python`` is the interpreter of an environment with
mergekit; without it only the others run. Measurements are appended to FOLDER/measured.jsonl; the tables printed are
made of all rows of this size: medians, then the limits and whether they hold, then what importing numba and loading its
machine code cost per merge. ``--layers 22`` has 1.1 billion parameters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint import VOCABULARY, Sizes, write

# The command by its function, so that it is the same wherever this file is.
OURS = [sys.executable, "-c", "from merganser.cli import main; main()", "merge"]
KINDS = ("numba", "numpy", "mergekit", "cp")
DENSITY = 0.3
DENSE = ("ties", "dare_ties", "breadcrumbs_ties")
"""Rules that take a density."""

LIMITS: dict[str, dict[str, float]] = {"linear": {"cpu": 8, "wall": 2.5}, "ties": {"cpu": 18, "wall": 5}}
"""At 44 layers with numba: at least so many times less processor time than mergekit, wall time at most so many times
that of ``cp``."""
MAX_MEGABYTES = 400

WITHOUT_NUMBA = "import numpy"
WITH_NUMBA = """
import numpy as np
from merganser.checkpoints import kernels as k
types, rows, out = k.Types(k.BF16, k.BF16), np.zeros((3, 8), np.uint16), np.zeros(8, np.uint16)
models, bracket = np.zeros(2, k.MODEL), np.zeros(3, np.float32)
k.scan(rows[0], rows[2], 0, bracket, k.BF16, np.zeros(9, np.float32), np.zeros(9, np.int64))
k.elect(rows, 0, models, k.Signs(True, True, np.float32(1), np.float32(1)), types, out)
"""
"""Loads what a TIES merge loads."""


def models(work: Path, layers: int, vocabulary: int) -> list[Path]:
    """Base and two fine-tuned models, generated where they are missing."""
    name = f"{layers}" if vocabulary == VOCABULARY else f"{layers}-{vocabulary}"
    sizes = Sizes(layers, vocabulary=vocabulary)
    base = work / f"base-{name}"
    if not base.exists():
        _write_apart(base, sizes, seed=0)
    paths = [base]
    for seed in (1, 2):
        tuned = work / f"tuned-{name}-{seed}"
        if not tuned.exists():
            _write_apart(tuned, sizes, seed=seed, origin=base)
        paths.append(tuned)
    return paths


def _write_apart(out: Path, sizes: Sizes, **how: Any) -> None:
    """In a process of its own: the peak memory of a process counts what the one that started it held."""
    writer = multiprocessing.get_context("spawn").Process(target=write, args=(out, sizes), kwargs=how)
    writer.start()
    writer.join()
    if writer.exitcode != 0:
        raise SystemExit(f"{out} could not be written")


def command(kind: str, rule: str, paths: list[Path], out: Path, mergekit: str | None) -> list[str] | None:
    """The process to run; ``None`` where there is none."""
    base, *tuned = paths
    if kind == "cp":
        return ["cp", "-r", str(base), str(out)]
    needs_base = rule != "linear"
    if kind in ("numba", "numpy"):
        arguments = ["--rule", rule, "--kernels", kind, "--out", str(out)]
        arguments += ["--base", str(base)] if needs_base else []
        arguments += ["--weights", ".5,.5"] if rule != "magmax" else []
        arguments += ["--density", str(DENSITY)] if rule in DENSE else []
        return [*OURS, *map(str, tuned), *arguments]
    if mergekit is None or rule == "magmax":
        return None
    parameters: dict[str, Any] = {"weight": 0.5}
    if rule in DENSE:
        parameters["density"] = DENSITY
    config: dict[str, Any] = {
        "merge_method": rule,
        "models": [{"model": str(path), "parameters": parameters} for path in tuned],
        "dtype": "bfloat16",
    }
    if needs_base:
        config["base_model"] = str(base)
    path = out.parent / f"mergekit-{rule}.yml"
    path.write_text(json.dumps(config))
    script = "from mergekit.scripts.run_yaml import main; main()"
    return [mergekit, "-c", script, str(path), str(out), "--no-copy-tokenizer", "--no-write-model-card"]


def measure(arguments: list[str]) -> dict[str, float]:
    """Wall seconds, processor seconds (of them the system's) and peak resident megabytes of a process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    assert process.stderr is not None
    stderr = process.stderr.read().decode()[-2000:]
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{stderr}")
    cpu, system = usage.ru_utime + usage.ru_stime, usage.ru_stime
    return {"wall": wall, "cpu": cpu, "system": system, "megabytes": usage.ru_maxrss / 1024}


def compile_modules(python: str) -> None:
    """Compile the modules of an environment to bytecode where that is missing: whoever starts first does not pay."""
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip()
    # Its exit status tells of files that are no Python of this version, such as templates.
    subprocess.run([python, "-m", "compileall", "-qq", folder], check=False)


def warm(paths: list[Path]) -> None:
    """Read the models, parts of which have left the page cache if the process before needed much memory."""
    buffer = bytearray(8 << 20)
    for path in paths:
        for file in sorted(path.iterdir()):
            with open(file, "rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def run(given: argparse.Namespace) -> None:
    """Measure in turn and append."""
    for python in filter(None, (sys.executable, given.mergekit_python)):
        compile_modules(python)
    paths = models(given.work, given.layers, given.vocabulary)
    out = given.work / f"out-{os.getpid()}"
    kinds = given.kinds.split(",")
    for rule in given.rules.split(","):
        for kind in kinds:
            # Once unmeasured: compiled code is cached, files are in memory.
            arguments = None if kind in ("mergekit", "cp") else command(kind, rule, paths, out, None)
            if arguments is not None:
                shutil.rmtree(out, ignore_errors=True)
                measure(arguments)
        for _ in range(given.pairs):
            for kind in kinds:
                arguments = command(kind, rule, paths, out, given.mergekit_python)
                shutil.rmtree(out, ignore_errors=True)
                if arguments is None:
                    continue
                # What was written last is on its way to the disk; wait, so that nobody pays for another's writing.
                os.sync()
                warm(paths)
                load = os.getloadavg()[0]
                size = {"layers": given.layers, "vocabulary": given.vocabulary}
                row = {"rule": rule, "kind": kind, **size, "load": load, **measure(arguments)}
                with open(given.work / "measured.jsonl", "a") as file:
                    file.write(json.dumps(row) + "\n")
    shutil.rmtree(out, ignore_errors=True)


def table(rows: list[dict[str, Any]], layers: int) -> str:
    """Medians, and the medians of the ratios within pairs."""
    lines = [
        "| rule | program | runs | CPU s | wall s | peak MB | CPU: mergekit is slower by | wall: times cp | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rules = list(dict.fromkeys(row["rule"] for row in rows if row["layers"] == layers))
    for rule in rules:
        of = {k: [r for r in rows if (r["rule"], r["kind"], r["layers"]) == (rule, k, layers)] for k in KINDS}
        for kind in KINDS:
            if not of[kind]:
                continue
            middle = {
                key: statistics.median(row[key] for row in of[kind]) for key in ("cpu", "wall", "megabytes", "load")
            }
            slower = _ratio(of["mergekit"], of[kind], "cpu") if kind != "mergekit" else ""
            times = _ratio(of[kind], of["cp"], "wall") if kind != "cp" else ""
            lines.append(
                f"| {rule} | {kind} | {len(of[kind])} | {middle['cpu']:.2f} | {middle['wall']:.2f} | "
                f"{middle['megabytes']:.0f} | {slower if kind != 'cp' else ''} | {times} | {middle['load']:.1f} |"
            )
    return "\n".join(lines)


def _ratio(over: list[dict[str, Any]], under: list[dict[str, Any]], key: str) -> str:
    pairs = [a[key] / b[key] for a, b in zip(over, under, strict=False)]
    return f"{statistics.median(pairs):.1f}" if pairs else ""


def limits(rows: list[dict[str, Any]], layers: int) -> str:
    """The limits beside what was measured."""
    lines = ["| rule | limit | measured | holds |", "| --- | --- | --- | --- |"]
    for rule, limit in LIMITS.items():
        of = {k: [r for r in rows if (r["rule"], r["kind"], r["layers"]) == (rule, k, layers)] for k in KINDS}
        if not of["numba"]:
            continue
        if of["mergekit"]:
            ratio = float(_ratio(of["mergekit"], of["numba"], "cpu"))
            lines.append(
                f"| {rule} | CPU: mergekit / numba >= {limit['cpu']:g} | {ratio:.1f} | {ratio >= limit['cpu']} |"
            )
        if of["cp"]:
            ratio = float(_ratio(of["numba"], of["cp"], "wall"))
            lines.append(f"| {rule} | wall: numba / cp <= {limit['wall']:g} | {ratio:.1f} | {ratio <= limit['wall']} |")
        peak = max(row["megabytes"] for row in of["numba"])
        lines.append(f"| {rule} | peak MB <= {MAX_MEGABYTES} | {peak:.0f} | {peak <= MAX_MEGABYTES} |")
    return "\n".join(lines)


def numba_seconds() -> tuple[float, float]:
    """Median processor and wall seconds that importing numba and loading its machine code add to a process."""
    measure([sys.executable, "-c", WITH_NUMBA])  # compiles, where nothing is kept yet
    pairs = [[measure([sys.executable, "-c", code]) for code in (WITHOUT_NUMBA, WITH_NUMBA)] for _ in range(5)]
    cpu, wall = (statistics.median(b[key] - a[key] for a, b in pairs) for key in ("cpu", "wall"))
    return cpu, wall


def versions(mergekit: str | None) -> str:
    """Programs and machine."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "?")
    ours = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba"))
    theirs = ""
    if mergekit:
        code = "from importlib.metadata import version as v; print('mergekit', v('mergekit') + ', torch', v('torch'))"
        theirs = (
            "; " + subprocess.run([mergekit, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        )
    return f"Python {platform.python_version()}, {ours}{theirs}; {os.cpu_count()} x {model}, Linux {platform.release()}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mergekit-python")
    parser.add_argument("--pairs", type=int, default=3, help="rounds")
    parser.add_argument("--layers", type=int, default=44, help="44: 2.2 billion parameters")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="rows of the two largest tensors")
    parser.add_argument("--rules", default="linear,magmax,ties,dare_ties", help="which rules")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which of them to run, by default all")
    parser.add_argument("--print-only", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if not given.print_only:
        run(given)
    rows = [json.loads(line) for line in (given.work / "measured.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("vocabulary", VOCABULARY) == given.vocabulary]
    print(versions(given.mergekit_python) + "\n")
    print(table(rows, given.layers))
    print("\nLimits, set for 44 layers:\n\n" + limits(rows, given.layers))
    cpu, wall = numba_seconds()
    print(
        f"\nImporting numba and loading its machine code: {cpu:.2f} s of processor time, {wall:.2f} s wall per merge."
    )


if __name__ == "__main__":
    main()
