#!/bin/sh
# Build the wheel and the source archive, check them with twine, and try each in an empty environment: the version, a merge
# of two tiny checkpoints, and a run of examples/matcher.yaml with a tiny model made on the spot.
#
# Usage: scripts/check_package.sh [PYTHON]     (default: python3; writes dist/)
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD
PYTHON=${1:-python3}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

echo "Building and checking dist/ ..."
"$PYTHON" -m venv "$WORK/build"
"$WORK/build/bin/pip" install --quiet --disable-pip-version-check build twine
rm -rf dist
"$WORK/build/bin/python" -m build --outdir dist . >"$WORK/build.log" 2>&1 || { tail -30 "$WORK/build.log"; exit 1; }
"$WORK/build/bin/twine" check --strict dist/*

try() { # ARCHIVE: install it into an empty environment and use it outside of this folder
    echo "Trying $1 ..."
    rm -rf "$WORK/venv" "$WORK/here"
    mkdir "$WORK/here"
    cd "$WORK/here"
    "$PYTHON" -m venv "$WORK/venv"
    "$WORK/venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$ROOT/constraints.txt" torch
    "$WORK/venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$ROOT/constraints.txt" "$ROOT/$1"
    PATH="$WORK/venv/bin:$PATH"
    unset PYTHONPATH || true
    merganser --version
    cp -r "$ROOT/examples" .
    cp "$ROOT/tests/tiny.py" .
    python - <<'END'
from pathlib import Path

from tiny import tiny_bert, tiny_llama

for seed, name in enumerate("ab"):
    tiny_llama(Path(name), seed=seed)
model = tiny_bert(Path("model")).resolve()
file = Path("examples/matcher.yaml")
text = file.read_text(encoding="utf-8")
hub = "sentence-transformers/all-MiniLM-L6-v2"
assert hub in text
file.write_text(text.replace(hub, str(model)), encoding="utf-8")
END
    merganser merge a b --rule linear --out merged
    python -c 'from transformers import AutoModelForCausalLM as M; M.from_pretrained("merged")'
    python examples/make_data.py
    merganser run examples/matcher.yaml --out runs/first
    test -s runs/first/report.html
    cd "$ROOT"
}

for archive in dist/*.whl dist/*.tar.gz; do
    try "$archive"
done
echo "The wheel and the source archive work."
