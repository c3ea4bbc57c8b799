"""Images through the whole learner: scikit-learn's digits in two class-incremental tasks."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from merganser.config import load_config
from merganser.errors import InputError
from merganser.learner import Learner
from merganser.learner.example_store import PROTOTYPES
from merganser.models.vision import image_vectors
from merganser.runs.directory import RunDirectory
from merganser.runs.rows import IMAGES
from merganser.runs.undo import undo_rows
from merganser.streams.loading import load_stream
from merganser.streams.task import Task
from tests.learner.toys import Command, results
from tests.streams.images.idx_bytes import idx
from tests.tiny import tiny_clip, tiny_vit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 3 as IDX files (8 x 8 pixels) and two tiny models."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < 4)
    parts = {"train": chosen[:160], "test": chosen[160:240]}
    for part, rows in parts.items():
        pixels = np.clip(digits.images[rows] * 16, 0, 255)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(digits.target[rows])))
    tiny_vit(folder / "vit")
    tiny_clip(folder / "clip", ["zero one two three a photo of the number"])
    return folder


def configuration(home: Path, model: str = "vit", **changes: Any) -> tuple[Any, tuple[Task, ...]]:
    values: dict[str, Any] = {
        "model": {"name": str(home / model), "kind": "matcher", "precision": "fp32", "candidates": "seen"},
        "stream": {
            "split": {
                "train": "train-images-idx3-ubyte.gz",
                "test": "test-images-idx3-ubyte.gz",
                "classes": ["zero", "one", "two", "three"],
                "classes_per_task": 2,
            }
        },
        "method": {"name": "aim", "interval": 2, "cold_start": 1},
        "memory": {"number": 8},
        "training": {"steps": 40, "batch": 16, "learning_rate": 0.01, "warmup": 2},
        "seed": 1,
    }
    values["model"]["lora"] = {"targets": ["q_proj", "v_proj", "fc1", "fc2"]}
    values.update(changes)
    file = home / f"{model}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    config = load_config(file)
    assert config.stream is not None
    return config, load_stream(config.stream, home).tasks


@pytest.fixture(scope="module")
def learned(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned both tasks with aim."""
    torch.set_num_threads(1)
    config, tasks = configuration(home)
    run = tmp_path_factory.mktemp("runs") / "aim"
    with Learner.of_config(run, config) as learner:
        learner.learn_stream(tasks)
    return run


def last_row(run: Path) -> dict[str, float]:
    """Scores after the last task."""
    scores = RunDirectory.open(run).rows[-1].file.scores.scores
    return {name: score.value for name, score in scores.items()}


def test_classes_are_learned_and_less_is_forgotten_with_a_memory(learned: Path, home: Path, tmp_path: Path) -> None:
    config, tasks = configuration(home, method={"name": "sequential"})
    with Learner.of_config(tmp_path / "run", config) as learner:
        learner.learn_stream(tasks)
    sequential, aim = last_row(tmp_path / "run"), last_row(learned)
    assert sequential["classes-02"] > 0.7
    assert sequential["classes-01"] < 0.2
    assert aim["classes-01"] > sequential["classes-01"] + 0.3


def test_a_run_keeps_images_and_prototypes(learned: Path) -> None:
    folder = learned / "tasks" / "01-classes-01"
    lines = [json.loads(line) for name in ("memory", "test") for line in (folder / f"{name}.jsonl").open()]
    assert len({line["image"] for line in lines}) == len(lines)
    rows = RunDirectory.open(learned).rows
    images = 8 * (8 * 8 + len(b"P5\n8 8\n255\n"))
    memory = rows[1].file.tasks[0].memory
    texts = sum(len(line["input"]) + len(line["output"]) for line in map(json.loads, (folder / "memory.jsonl").open()))
    assert memory.bytes == images + texts
    # Four bytes for each of 32 numbers of each class so far.
    assert [task.method_bytes["prototypes"] for row in rows for task in row.file.tasks] == [2 * 32 * 4, 4 * 32 * 4]
    assert (folder / PROTOTYPES).is_file()
    assert (folder / IMAGES).is_file()


def test_continued_after_an_interruption_it_is_the_same(learned: Path, home: Path, tmp_path: Path) -> None:
    config, tasks = configuration(home)
    shutil.copytree(learned, tmp_path / "run")
    directory = RunDirectory.open(tmp_path / "run")
    directory.lock.acquire()
    undo_rows(directory)
    directory.lock.release()
    with Learner.of_config(tmp_path / "run", config) as learner:
        learner.learn_stream(tasks)
    assert results(tmp_path / "run") == results(learned)


def test_asking_measuring_and_exporting(
    learned: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, tasks = configuration(home)
    example = next(each for each in tasks[1].test if each.output == "three")
    assert example.image is not None
    example.image.decode("L").save(tmp_path / "three.png")
    command = Command(monkeypatch, capsys)
    done = command("ask", learned, tmp_path / "three.png", "--json")
    assert done.code == 0
    with Learner.open(learned, read_only=True) as learner:
        answer = learner.predict([str(tmp_path / "three.png")])[0]
        measured = {name: score.value for name, score in learner.evaluate().items()}
        learner.export(tmp_path / "out", merged=True)
        with pytest.raises(InputError, match="no such file"):
            learner.predict([str(tmp_path / "four.png")])
    assert json.loads(done.out)["answer"] == answer.text
    assert measured == last_row(learned)
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    pixels = processor(images=[Image.open(tmp_path / "three.png")], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert model(pixel_values=pixels).last_hidden_state.shape == (1, 17, 32)
    assert command("report", learned).code == 0


def test_a_missing_image_of_the_memory_is_named(learned: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(learned, run)
    file = run / "tasks" / "01-classes-01" / IMAGES
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"images\.safetensors' is damaged: its content has"):
        Learner.open(run)


def test_joint_training_sees_all_classes_as_candidates(home: Path, tmp_path: Path) -> None:
    config, tasks = configuration(home, method={"name": "joint"})
    with Learner.of_config(tmp_path / "run", config) as learner:
        learner.learn_stream(tasks)
        scores = last_row(tmp_path / "run")
    assert min(scores.values()) > 0.45


def test_a_clip_learns_all_weights_of_its_image_encoder(home: Path, tmp_path: Path) -> None:
    config, tasks = configuration(home, "clip")
    whole = config.model.model_copy(update={"lora": None, "label_prompt": "a photo of the number {label}"})
    config = config.model_copy(update={"model": whole, "method": type(config.method)(name="aim")})
    config.training.learning_rate = 0.003
    with Learner.of_config(tmp_path / "run", config) as learner:
        learner.learn(tasks[0])
        assert learner.scores.values[-1][0] > 0.75
    assert not list((tmp_path / "run").rglob(PROTOTYPES))
    from safetensors.torch import load_file

    start, end = (
        load_file(next((tmp_path / "run" / "tasks").glob(f"{n}-*")) / "adapter/model.safetensors") for n in ("00", "01")
    )
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert moved == {"vision_model", "visual_projection"}


def test_a_text_model_refuses_images_before_any_work(home: Path, tmp_path: Path) -> None:
    from tests.learner.toys import model_folder

    _, tasks = configuration(home)
    with (
        pytest.raises(InputError, match="reads text, but the task has images"),
        Learner.open(tmp_path / "run", model={"name": str(model_folder()), "kind": "matcher"}) as learner,
    ):
        learner.learn_stream(tasks)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["vit", "clip"])
def test_features_of_images_decide_the_shares(model: str, home: Path, tmp_path: Path) -> None:
    method = {"name": "tunable_magmax", "preference": "feature_similarity", "wanted": ["classes-02"]}
    training = {"steps": 2, "batch": 8, "learning_rate": 0.001, "warmup": 1}
    config, tasks = configuration(home, model, method=method, training=training)
    with Learner.of_config(tmp_path / "run", config) as learner:
        learner.learn_stream(tasks)
        features = learner.session.method._features  # type: ignore[attr-defined]
        share = learner.record.merges[-1].weight_new
        pictures = [example.image for example in tasks[1].train]
        backbone = learner.session.backbone
        with backbone.pretrained() as encoder, torch.no_grad():  # type: ignore[attr-defined]
            pixels = backbone.tokenizer.pixel_values(pictures)  # type: ignore[attr-defined]
            mean = image_vectors(encoder, pixels, config.model.pooling).mean(0)
    torch.testing.assert_close(features["classes-02"], mean, rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(features["classes-01"].double(), mean.double(), dim=0).item()
    assert share == pytest.approx(0.5 / (1 + math.exp(-100 * (1 - cosine) / 2)), rel=1e-3)


def test_trm_merges_image_encoders(home: Path, tmp_path: Path) -> None:
    """The whole construction, responsiveness and consistency over all classes seen included."""
    config, tasks = configuration(home, method={"name": "trm", "steps": 3, "batch": 32})
    with Learner.of_config(tmp_path / "run", config) as learner:
        learner.learn_stream(tasks)
        merges = learner.record.merges
        objective = json.loads((learner.session.rows[2].folder / "method" / "merge.json").read_text())
    assert [merge.task for merge in merges] == [task.name for task in tasks]
    steps = objective["objective"]
    assert len(steps) == 3
    assert all(set(step) == {"alignment", "consistency", "responsiveness", "ridge"} for step in steps)
    assert all(step["consistency"] > 0 for step in steps)
