"""Train a small vision transformer from scratch on some classes of Fashion-MNIST: a pretrained model without a hub.

    scripts/fetch_fashion_mnist.sh
    python scripts/pretrain_vit.py                  # writes models/fashion-vit, loads with AutoModel

By default it trains on the first half of the classes (T-shirt/top, trouser, pullover, dress, coat);
examples/fashion.yaml then learns the other five. Classes are predicted by cosine, as kind ``matcher`` does: the
direction of the mean of the last layer's tokens is compared with one learned direction per class, which is discarded
at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from merganser.streams.images.idx import read_idx

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MEAN, DEVIATION = 0.2860, 0.3530
"""Mean and standard deviation of the pixels of the training images, in [0, 1]."""
TEMPERATURE = 0.05


def images_of(folder: Path, part: str, classes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised pixels (images x 1 x 28 x 28) and the position of each image's class in ``classes``."""
    pixels, _ = read_idx(folder / f"{part}-images-idx3-ubyte.gz", f"{part} images")
    labels, _ = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", f"{part} labels")
    chosen = np.isin(labels, classes)
    position = np.searchsorted(classes, labels[chosen])
    scaled = torch.from_numpy(pixels[chosen].astype(np.float32) / 255)
    return ((scaled - MEAN) / DEVIATION).unsqueeze(1), torch.from_numpy(position)


def augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by up to two pixels and mirror half of them, so that the model learns shapes, not positions."""
    size = batch.shape[-1]
    padded = functional.pad(batch, (2, 2, 2, 2), value=-MEAN / DEVIATION)
    rows = torch.randint(0, 5, (len(batch), 1), generator=generator) + torch.arange(size)
    columns = torch.randint(0, 5, (len(batch), 1), generator=generator) + torch.arange(size)
    shifted = padded[torch.arange(len(batch))[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)
    mirror = torch.rand(len(batch), generator=generator) < 0.5
    return torch.where(mirror[:, None, None, None], shifted.flip(-1), shifted)


def train(model: ViTModel, directions: torch.nn.Parameter, data: tuple[torch.Tensor, torch.Tensor], arguments) -> None:
    """Train with AdamW, a linear warm-up over a tenth of the steps and a linear decay."""
    images, labels = data
    generator = torch.Generator().manual_seed(arguments.seed)
    steps = arguments.epochs * (len(images) // arguments.batch)
    optimizer = torch.optim.AdamW([*model.parameters(), directions], lr=arguments.learning_rate, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    started, step = time.perf_counter(), 0
    for epoch in range(arguments.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // arguments.batch * arguments.batch].view(-1, arguments.batch):
            loss = functional.cross_entropy(
                cosines(model, directions, augment(images[rows], generator)) / TEMPERATURE, labels[rows]
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            step += 1
            if step % 50 == 0:
                seconds = time.perf_counter() - started
                print(f"epoch {epoch + 1}, step {step}/{steps}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)


def cosines(model: ViTModel, directions: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the cosine of each image's mean token with each class's direction (images x classes)."""
    tokens = model(pixel_values=images).last_hidden_state.mean(1)
    return functional.normalize(tokens, dim=-1) @ functional.normalize(directions, dim=-1).T


@torch.no_grad()
def accuracy(model: ViTModel, directions: torch.Tensor, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the fraction of test images whose nearest direction is their class's."""
    images, labels = data
    model.eval()
    correct = [cosines(model, directions, part).argmax(-1) for part in images.split(500)]
    return float((torch.cat(correct) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/fashion-mnist"), help="folder of the four IDX files")
    parser.add_argument("--out", type=Path, default=Path("models/fashion-vit"), help="folder to write")
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="class numbers to learn")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--patch", type=int, default=4, help="side of a patch in pixels")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    classes = sorted(set(arguments.classes))
    torch.manual_seed(arguments.seed)
    config = ViTConfig(
        image_size=28,
        patch_size=arguments.patch,
        num_channels=1,
        hidden_size=arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        intermediate_size=2 * arguments.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = ViTModel(config, add_pooling_layer=False)
    directions = torch.nn.Parameter(torch.randn(len(classes), arguments.width))
    print(f"{sum(p.numel() for p in model.parameters()):,} weights; classes: {[CLASSES[i] for i in classes]}")
    model.train()
    train(model, directions, images_of(arguments.data, "train", classes), arguments)
    test_accuracy = accuracy(model, directions, images_of(arguments.data, "t10k", classes))
    model.save_pretrained(arguments.out)
    ViTImageProcessorPil(
        do_resize=True, size={"height": 28, "width": 28}, image_mean=[MEAN], image_std=[DEVIATION]
    ).save_pretrained(arguments.out)
    facts = {"classes": [CLASSES[i] for i in classes], "test_accuracy": round(test_accuracy, 4), "seed": arguments.seed}
    (arguments.out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"test accuracy on these classes {100 * test_accuracy:.1f} %; written to {arguments.out}")


if __name__ == "__main__":
    main()
