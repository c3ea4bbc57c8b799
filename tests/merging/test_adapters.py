"""Adapters: exact on updates, against PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.adapters.merge import merge_adapters
from merganser.checkpoints.adapters.source import check_alphas, read_adapter, scaling_of
from merganser.checkpoints.recipe_file import parse
from merganser.errors import InputError
from merganser.merging.adapters import Factors, concatenate, decompose, merge_factors, merge_updates, truncate
from merganser.merging.rules import RULES
from merganser.merging.ties import ties
from tests.checkpoints.conftest import write_file

P = "base_model.model."


def factors(seed: int, rank: int, rows: int = 7, columns: int = 5, scaling: float = 1.0) -> Factors:
    generator = np.random.default_rng(seed)
    return Factors(generator.normal(size=(rank, columns)), generator.normal(size=(rows, rank)), scaling)


def test_concatenation_is_the_weighted_sum_of_the_updates() -> None:
    parts = [factors(0, 2, scaling=0.5), factors(1, 3, scaling=2.0)]
    stacked = concatenate(parts, [0.3, -0.7])
    assert stacked.rank == 5
    np.testing.assert_allclose(stacked.update(), 0.3 * parts[0].update() - 0.7 * parts[1].update(), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_truncation_through_qr_is_the_best_approximation(rank: int) -> None:
    whole = factors(3, 4, 30, 20, scaling=1.5)
    cut, error = truncate(whole, rank)
    u, s, v = np.linalg.svd(whole.update())
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    np.testing.assert_allclose(cut.update(), best, atol=1e-10)
    expected = np.linalg.norm(whole.update() - best) / np.linalg.norm(whole.update())
    assert error == pytest.approx(expected, abs=1e-12)
    assert cut.rank <= min(rank, 4)


def test_truncating_nothing_is_no_error() -> None:
    zero = Factors(np.zeros((2, 5)), np.zeros((7, 2)))
    assert truncate(zero, 1)[1] == 0.0


@pytest.mark.parametrize("shape", [(200, 150), (150, 200)])
def test_leading_factors_of_a_full_matrix(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).normal(size=shape) @ np.diag(0.9 ** np.arange(shape[1]))
    found, error = decompose(matrix, 6)
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(found.update(), (u[:, :6] * s[:6]) @ v[:6], atol=1e-6)
    assert error == pytest.approx(np.linalg.norm(s[6:]) / np.linalg.norm(s), abs=1e-7)


def test_a_module_that_an_adapter_does_not_touch_has_a_zero_update() -> None:
    part = factors(0, 2)
    merged, _ = merge_updates("m", [part, None], RULES["linear"], {"weights": [1, 3], "normalize": True})
    np.testing.assert_allclose(merged.update(), 0.25 * part.update(), atol=1e-12)


def test_rules_by_entry_see_the_updates() -> None:
    parts = [factors(0, 2), factors(1, 2)]
    merged, error = merge_updates("m", parts, RULES["ties"], {"density": 0.5, "weights": 1.0}, rank=5)
    updates = [part.update().astype(np.float32) for part in parts]
    np.testing.assert_allclose(merged.update(), ties(updates, np.zeros((7, 5), np.float32), density=0.5), atol=1e-5)
    assert error < 1e-6
    with pytest.raises(InputError, match="full rank"):
        merge_updates("m", parts, RULES["ties"], {})


def test_rules_by_angle_stay_exact() -> None:
    parts = [factors(0, 2), factors(1, 2)]
    merged, _ = merge_updates("m", parts, RULES["slerp"], {"t": 0.3})
    assert merged.rank == 4
    expected = RULES["slerp"].function([part.update() for part in parts], t=0.3)
    np.testing.assert_allclose(merged.update(), expected, atol=1e-5)


def test_factors_may_be_merged_apart_where_they_match() -> None:
    parts = [factors(0, 2), factors(1, 2)]
    merged, _ = merge_factors("m", parts, RULES["linear"], {"weights": [1, 1]})
    np.testing.assert_allclose(merged.a, (parts[0].a + parts[1].a) / 2)
    np.testing.assert_allclose(merged.b, (parts[0].b + parts[1].b) / 2)
    with pytest.raises(InputError, match="rank 2 scaling 1, rank 3 scaling 1"):
        merge_factors("m", [factors(0, 2), factors(1, 3)], RULES["linear"], {})
    with pytest.raises(InputError, match="Not every adapter has m"):
        merge_factors("m", [factors(0, 2), None], RULES["linear"], {})


def test_scaling_follows_the_patterns() -> None:
    config = {"lora_alpha": 16, "alpha_pattern": {"q_proj": 4, r"layers\.1\.v": 2}}
    patterns = check_alphas(config, Path("adapter_config.json"))
    assert scaling_of(config, "layers.0.v", 8, patterns) == 2.0
    assert scaling_of(config, "layers.0.q_proj", 8, patterns) == 0.5
    assert scaling_of(config, "layers.1.v", 8, patterns) == 0.25
    assert scaling_of({**config, "use_rslora": True}, "layers.0.v", 16, patterns) == 4.0


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> str:
    folder.mkdir()
    content = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q"],
        "init_lora_weights": True,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    write_file(folder / "adapter_model.safetensors", tensors)
    return str(folder)


def plain(seed: int = 0, rank: int = 2) -> dict[str, np.ndarray]:
    part = factors(seed, rank)
    return {f"{P}x.q.lora_A.weight": part.a.astype(np.float32), f"{P}x.q.lora_B.weight": part.b.astype(np.float32)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"target_parameters": ["w"]}, "target_parameters"),
    ],
)
def test_what_is_not_plain_is_refused_by_name(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_adapter(write_adapter(tmp_path / "a", plain(), **config))


def test_broken_adapters_are_refused_by_name(tmp_path: Path) -> None:
    tensors = plain()
    tensors[f"{P}x.q.lora_magnitude_vector"] = np.ones(3, np.float32)
    with pytest.raises(InputError, match="lora_magnitude_vector"):
        read_adapter(write_adapter(tmp_path / "a", tensors))
    tensors = plain()
    del tensors[f"{P}x.q.lora_B.weight"]
    with pytest.raises(InputError, match=r"only one factor of x\.q"):
        read_adapter(write_adapter(tmp_path / "b", tensors))
    tensors = plain()
    tensors[f"{P}x.q.lora_A.weight"][0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        read_adapter(write_adapter(tmp_path / "c", tensors))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "adapter_config.json").write_text("{}")
    (tmp_path / "d" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickle"):
        read_adapter(str(tmp_path / "d"))


def test_biases_and_saved_modules_need_a_mean(tmp_path: Path) -> None:
    made = []
    for seed in (0, 1):
        tensors = {**plain(seed), f"{P}head.weight": np.full((2, 2), float(seed), np.float32)}
        made.append(write_adapter(tmp_path / str(seed), tensors))
    merge_adapters(parse({"rule": "linear", "models": made}, "test"), tmp_path / "mean")
    np.testing.assert_array_equal(read_adapter(str(tmp_path / "mean")).others[f"{P}head.weight"], 0.5)
    with pytest.raises(InputError, match=r"head\.weight .* cannot be merged by task_arithmetic"):
        merge_adapters(parse({"rule": "task_arithmetic", "models": made}, "test"), tmp_path / "sum")
    override = [{"match": "*head*", "rule": "linear"}]
    asked = parse({"rule": "task_arithmetic", "models": made, "overrides": override}, "test")
    merge_adapters(asked, tmp_path / "sum")
    made[1] = write_adapter(tmp_path / "without", plain(1))
    with pytest.raises(InputError, match=r"head\.weight .* is missing in"):
        merge_adapters(parse({"rule": "linear", "models": made}, "test"), tmp_path / "none")


def test_a_base_is_refused(tmp_path: Path) -> None:
    made = [write_adapter(tmp_path / str(seed), plain(seed)) for seed in (0, 1)]
    with pytest.raises(InputError, match="a base was given"):
        merge_adapters(parse({"rule": "linear", "models": made, "base": "x"}, "test"), tmp_path / "out")


# Against PEFT -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model with an embedding, linear layers and a convolution, and adapters of all kinds for it, by PEFT."""
    import peft
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 8)
            self.q = torch.nn.Linear(8, 8)
            self.v = torch.nn.Linear(8, 6)
            self.conv = torch.nn.Conv1d(2, 3, 3)

        def forward(self, ids: Any) -> Any:
            return self.conv(self.v(self.q(self.embed(ids))))

    torch.manual_seed(0)
    start = Tiny().state_dict()

    def model() -> Any:
        made = Tiny()
        made.load_state_dict(start)
        return made

    root = tmp_path_factory.mktemp("adapters")
    kinds = {
        "plain": {"r": 2, "lora_alpha": 4, "target_modules": ["q", "v"]},
        "wide": {"r": 4, "lora_alpha": 4, "target_modules": ["q", "v"]},
        "stable": {"r": 3, "lora_alpha": 5, "target_modules": ["q"], "use_rslora": True},
        "patterns": {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q", "v", "embed", "conv"],
            "rank_pattern": {"v": 3},
            "alpha_pattern": {"q": 7},
        },
        "same": {"r": 2, "lora_alpha": 4, "target_modules": ["q", "v"]},
    }
    deltas = {}
    for number, (name, kind) in enumerate(kinds.items()):
        torch.manual_seed(number + 10)
        adapted = peft.get_peft_model(model(), peft.LoraConfig(**kind))
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_" in key:
                    parameter.normal_()
        adapted.save_pretrained(root / name)
        deltas[name] = merged_weights(adapted, start)
    return {"root": root, "model": model, "start": start, "deltas": deltas}


def merged_weights(adapted: Any, start: dict[str, Any]) -> dict[str, np.ndarray]:
    """What PEFT adds to each weight when it merges an adapter."""
    weights = adapted.merge_and_unload().state_dict()
    return {name: (weights[name] - start[name]).numpy() for name in start}


def load_in_peft(folder: Path, tuned: dict[str, Any]) -> dict[str, np.ndarray]:
    import peft

    return merged_weights(peft.PeftModel.from_pretrained(tuned["model"](), str(folder)), tuned["start"])


@pytest.mark.parametrize(
    "names", [("plain", "same"), ("plain", "wide"), ("plain", "stable"), ("patterns", "stable", "wide")], ids="-".join
)
def test_merged_adapters_do_in_peft_what_the_sum_of_the_updates_does(
    names: tuple[str, ...], tuned: dict[str, Any], tmp_path: Path
) -> None:
    weights = [0.6, -0.2, 1.1][: len(names)]
    models = [{"model": str(tuned["root"] / n), "weight": w} for n, w in zip(names, weights, strict=True)]
    report = merge_adapters(parse({"rule": "task_arithmetic", "models": models}, "test"), tmp_path / "out")
    assert set(report.errors.values()) == {0.0}
    merged = load_in_peft(tmp_path / "out", tuned)
    for key in tuned["start"]:
        expected = sum(w * tuned["deltas"][n][key] for n, w in zip(names, weights, strict=True))
        np.testing.assert_allclose(merged[key], expected, atol=2e-5, err_msg=key)


def test_cutting_the_rank_reports_the_error_of_every_module(tuned: dict[str, Any], tmp_path: Path) -> None:
    models = [str(tuned["root"] / name) for name in ("plain", "wide")]
    asked = parse({"rule": "linear", "models": models, "rank": 2}, "test")
    report = merge_adapters(asked, tmp_path / "out")
    merged = load_in_peft(tmp_path / "out", tuned)
    for module, error in report.errors.items():
        whole = (tuned["deltas"]["plain"][f"{module}.weight"] + tuned["deltas"]["wide"][f"{module}.weight"]) / 2
        measured = np.linalg.norm(merged[f"{module}.weight"] - whole) / np.linalg.norm(whole)
        assert 0.05 < error < 1
        assert error == pytest.approx(measured, rel=1e-3)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2


def test_factors_space_keeps_the_layout(tuned: dict[str, Any], tmp_path: Path) -> None:
    models = [str(tuned["root"] / name) for name in ("plain", "same")]
    merge_adapters(parse({"rule": "linear", "models": models, "space": "factors"}, "test"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, config["target_modules"])
    first, second, merged = (read_adapter(m) for m in (*models, str(tmp_path / "out")))
    np.testing.assert_allclose(merged.modules["q"].a, (first.modules["q"].a + second.modules["q"].a) / 2, atol=1e-6)
    assert merged.modules["q"].scaling == first.modules["q"].scaling


def test_peft_concatenation_gives_the_same(tuned: dict[str, Any], tmp_path: Path) -> None:
    import peft

    models = [str(tuned["root"] / name) for name in ("plain", "wide")]
    adapted = peft.PeftModel.from_pretrained(tuned["model"](), models[0], adapter_name="a")
    adapted.load_adapter(models[1], adapter_name="b")
    adapted.add_weighted_adapter(["a", "b"], [0.3, 0.9], "c", combination_type="cat")
    adapted.set_adapter("c")
    theirs = merged_weights(adapted, tuned["start"])
    content = {
        "rule": "task_arithmetic",
        "models": [{"model": m, "weight": w} for m, w in zip(models, (0.3, 0.9), strict=True)],
    }
    merge_adapters(parse(content, "test"), tmp_path / "out")
    ours = load_in_peft(tmp_path / "out", tuned)
    for key in tuned["start"]:
        np.testing.assert_allclose(ours[key], theirs[key], atol=2e-5)
