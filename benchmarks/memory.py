"""How much each sampler of the rehearsal memory keeps, on tasks in AimMerging's layout.

    python benchmarks/memory.py --data DATA > benchmarks/results/memory.md

Nothing is trained: the samplers draw from every task's training examples, with a share of 2 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from merganser.streams.loading import load_stream
from merganser.streams.memory import memory_bytes, sample_memory
from merganser.streams.options import MemoryOptions, StreamOptions

SAMPLERS = ("per_label", "uniform", "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, dev/ and test/")
    given = parser.parse_args()
    names = sorted(file.name.removesuffix("_T5.json") for file in (given.data / "train").glob("*_T5.json"))
    tasks = load_stream(StreamOptions(order=names, folder=str(given.data)), Path.cwd()).tasks
    print(f"# What the memory samplers keep of {len(tasks)} SuperNI tasks at a share of 2 %\n")
    print(f"| task | training examples | {' | '.join(SAMPLERS)} |\n|---|---|{'---|' * len(SAMPLERS)}")
    kept = dict.fromkeys(SAMPLERS, 0)
    nbytes = dict.fromkeys(SAMPLERS, 0)
    for task in tasks:
        cells = []
        for sampler in SAMPLERS:
            options = MemoryOptions(share=0.02, sampler=sampler, allow_excess=sampler == "reference")
            chosen = sample_memory(task.train, task.spec.labels, options, seed=0)
            kept[sampler] += len(chosen)
            nbytes[sampler] += memory_bytes(chosen)
            cells.append(f"{len(chosen)} ({100 * len(chosen) / len(task.train):.0f} %)")
        print(f"| {task.name} | {len(task.train)} | {' | '.join(cells)} |")
    size = sum(len(task.train) for task in tasks)
    total = [f"{kept[s]} ({100 * kept[s] / size:.0f} %), {nbytes[s]:,} bytes" for s in SAMPLERS]
    print(f"| all | {size} | {' | '.join(total)} |")
    print("\nCommand: `python benchmarks/memory.py --data DATA`, seed 0.")


if __name__ == "__main__":
    main()
