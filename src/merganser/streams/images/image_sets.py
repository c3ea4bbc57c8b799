"""Class-incremental streams of published image data sets: data, number of tasks, epochs.

Data sets, numbers of tasks and epochs as in MagMax (Marczak et al., ECCV 2024, arXiv 2407.06322), which fine-tunes the
image encoder of CLIP ViT-B/16 against the frozen text encoder. The images are not part of this package: they come from
the hub, or from a folder. The order of the classes is drawn from ``split.order_seed`` (0), or listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImageSet:
    """One data set with one number of tasks.

    Attributes:
        name: as in ``stream: {name: ...}``.
        description: one line for people.
        tasks: number of tasks; their numbers of classes differ by one at most.
        classes: of the whole set.
        epochs: passes over each task's images in MagMax.
        source: fields of ``stream.split`` that read it from the hub.
    """

    name: str
    description: str
    tasks: int
    classes: int
    epochs: int
    source: dict[str, Any]

    def split(self, folder: str | None) -> dict[str, Any]:
        """Return the values of ``stream.split``: from the hub, or from ``folder`` with ``train/`` and ``test/``."""
        source = {"train": f"{folder}/train", "test": f"{folder}/test"} if folder is not None else self.source
        return {**source, "labels": "train", "tasks": self.tasks, "order_seed": 0, "prefix": self.name}


def _sets() -> dict[str, ImageSet]:
    families: tuple[tuple[str, str, int, int, tuple[int, ...], dict[str, Any]], ...] = (
        (
            "cifar100",
            "CIFAR-100: 100 classes of small photographs",
            100,
            10,
            (5, 10, 20, 50),
            {"train": "hub:uoft-cs/cifar100", "test": "hub:uoft-cs/cifar100", "image": "img", "output": "fine_label"},
        ),
        (
            "imagenet-r",
            "ImageNet-R: 200 classes as art, cartoons, sketches; a fifth of each class is held out for testing",
            200,
            10,
            (5, 10, 20, 50),
            {"train": "hub:axiong/imagenet-r::test", "test_share": 0.2, "image": "image", "output": "class_name"},
        ),
        (
            "cub200",
            "CUB-200: 200 species of birds",
            200,
            30,
            (5, 10, 20),
            {"train": "hub:Donghyun99/CUB-200-2011", "test": "hub:Donghyun99/CUB-200-2011"}
            | {"image": "image", "output": "label"},
        ),
        (
            "cars",
            "Stanford Cars: 196 models of cars",
            196,
            30,
            (5, 10, 20),
            {"train": "hub:tanganke/stanford_cars", "test": "hub:tanganke/stanford_cars"}
            | {"image": "image", "output": "label"},
        ),
    )
    table = {}
    for name, description, classes, epochs, numbers, source in families:
        for tasks in numbers:
            table[f"{name}-{tasks}"] = ImageSet(
                f"{name}-{tasks}", f"{description}; {tasks} tasks", tasks, classes, epochs, source
            )
    return table


IMAGE_SETS: dict[str, ImageSet] = _sets()
"""Name -> set, in the order in which the command lists them."""
