#!/bin/sh
# Fetch Fashion-MNIST (70,000 grey images of 28 x 28, ten kinds of clothes; MIT licence) from Debian's package
# dataset-fashion-mnist. Needs apt-get and dpkg, but no root: the package is unpacked, not installed.
#
# Usage: scripts/fetch_fashion_mnist.sh [FOLDER]     (default: data/fashion-mnist)
set -eu
FOLDER=${1:-data/fashion-mnist}
if [ -f "$FOLDER/t10k-labels-idx1-ubyte.gz" ]; then
    echo "Fashion-MNIST is in $FOLDER already."
    exit 0
fi
for tool in apt-get dpkg; do
    command -v "$tool" >/dev/null || {
        echo "$tool was not found. Put the four *-ubyte.gz files of Fashion-MNIST into $FOLDER by hand." >&2
        exit 1
    }
done
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
(cd "$WORK" && apt-get download --quiet dataset-fashion-mnist) || {
    echo "The package dataset-fashion-mnist could not be fetched; try \`apt-get update\` (as root) first." >&2
    exit 1
}
dpkg -x "$WORK"/dataset-fashion-mnist_*.deb "$WORK/unpacked"
mkdir -p "$FOLDER"
# Copied last: the file that marks a complete folder.
for name in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
    cp "$(find "$WORK/unpacked" -name "$name-ubyte.gz")" "$FOLDER/$name-ubyte.gz"
done
cp "$WORK"/unpacked/usr/share/doc/dataset-fashion-mnist/copyright "$FOLDER/LICENSE"
echo "Fashion-MNIST is in $FOLDER."
