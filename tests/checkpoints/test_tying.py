"""Tied weights: the names of one parameter are merged alike, and a name that a file lacks is what it is tied to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoints.merge import merge_checkpoints
from merganser.checkpoints.plan import make_plan
from merganser.checkpoints.recipe_file import parse
from merganser.checkpoints.source import open_checkpoint
from merganser.errors import InputError
from merganser.merging.dare import dare
from tests.checkpoints.conftest import write_file, write_folder
from tests.checkpoints.test_merge import load

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def model(folder: Path, seed: int, *, copy: bool = False, head: int | None = None, tied: Any = True) -> str:
    """A model whose file has the embedding, and the output layer: a copy of it, or one of its own (a seed)."""
    generator = np.random.default_rng(seed)
    tensors = {EMBED: generator.normal(size=(12, 4)).astype(np.float32), NORM: np.full(4, seed, np.float32)}
    if copy:
        tensors[HEAD] = tensors[EMBED].copy()
    if head is not None:
        tensors[HEAD] = np.random.default_rng(head).normal(size=(12, 4)).astype(np.float32)
    write_folder(folder, tensors)
    settings = {"model_type": "llama", "vocab_size": 12, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(settings | ({} if tied is None else {"tie_word_embeddings": tied})))
    return str(folder)


def merged(models: list[Any], out: Path, **more: Any) -> dict[str, np.ndarray]:
    merge_checkpoints(parse({"rule": "linear", "models": models, **more}, "test"), out)
    return load(out)


@pytest.fixture
def copies(tmp_path: Path) -> list[str]:
    """Models and base whose files hold the tied matrix twice."""
    return [model(tmp_path / name, seed, copy=True) for seed, name in enumerate(("base", "a", "b"))]


@pytest.mark.parametrize("rule", ["ties", "dare_linear", "dare_ties", "della", "della_linear"])
def test_the_names_of_a_tied_matrix_have_one_mask(rule: str, copies: list[str], tmp_path: Path) -> None:
    result = merged(copies[1:], tmp_path / "out", base=copies[0], rule=rule, options={"density": 0.5})
    np.testing.assert_array_equal(result[EMBED], result[HEAD])


def test_the_mask_is_that_of_the_embedding_whichever_names_the_files_hold(copies: list[str], tmp_path: Path) -> None:
    once = [model(tmp_path / f"once-{seed}", seed) for seed in range(3)]
    options = {"rule": "dare_linear", "options": {"density": 0.5}, "seed": 3}
    first = merged(once[1:], tmp_path / "one", base=once[0], **options)
    second = merged(copies[1:], tmp_path / "two", base=copies[0], **options)
    base, a, b = (load(Path(path))[EMBED] for path in once)
    expected = dare([a, b], base, name=EMBED, density=0.5, seed=3)
    np.testing.assert_array_equal(first[EMBED], expected)
    np.testing.assert_array_equal(second[HEAD], expected)
    assert HEAD not in first


@pytest.mark.parametrize("pattern", ["*lm_head*", "*embed_tokens*"])
def test_an_override_by_either_name_is_one_of_the_matrix(pattern: str, copies: list[str], tmp_path: Path) -> None:
    result = merged(copies[1:], tmp_path / "out", overrides=[{"match": pattern, "weight": [1.0, 0.0]}])
    a = load(Path(copies[1]))
    np.testing.assert_array_equal(result[EMBED], a[EMBED])
    np.testing.assert_array_equal(result[HEAD], a[EMBED])
    np.testing.assert_array_equal(result[NORM], np.full(4, 1.5, np.float32))


def test_cases_fit_by_either_name(copies: list[str], tmp_path: Path) -> None:
    cases = {"cases": [{"contains": "lm_head", "value": 0.0}, {"value": 1.0}]}
    models = [{"model": copies[1], "weight": 1.0}, {"model": copies[2], "weight": cases}]
    result = merged(models, tmp_path / "out")
    np.testing.assert_array_equal(result[EMBED], load(Path(copies[1]))[EMBED])
    np.testing.assert_array_equal(result[EMBED], result[HEAD])


def test_models_that_are_not_tied_are_merged_name_by_name(tmp_path: Path) -> None:
    """Equal matrices are no tied ones where the configuration unties them."""
    names = [model(tmp_path / name, seed, copy=True, tied=False) for seed, name in enumerate("mab")]
    options = {"rule": "dare_linear", "options": {"density": 0.5}}
    result = merged(names[1:], tmp_path / "out", base=names[0], **options)
    assert not np.array_equal(result[EMBED], result[HEAD])


@pytest.mark.parametrize("common_only", [False, True])
def test_a_copy_in_one_file_does_not_make_the_result_depend_on_the_order(common_only: bool, tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 1, copy=True), model(tmp_path / "b", 2)
    expected = (load(Path(a))[EMBED] + load(Path(b))[EMBED]) / 2
    for order, names in (("ab", [a, b]), ("ba", [b, a])):
        result = merged(names, tmp_path / order, common_only=common_only)
        np.testing.assert_allclose(result[EMBED], expected, rtol=1e-6)
        np.testing.assert_array_equal(result.get(HEAD, result[EMBED]), result[EMBED])
        assert (HEAD in result) == (order == "ab")  # the layout of the first file


def test_weights_zero_and_one_give_a_model_back_whose_file_contradicts_its_tying(tmp_path: Path) -> None:
    """transformers does not tie names that the file holds with different values; the tied model has one matrix."""
    tied, apart = model(tmp_path / "tied", 1), model(tmp_path / "apart", 2, head=3)
    for order, names, weights in (("x", [tied, apart], (0, 1)), ("y", [apart, tied], (1, 0))):
        entries = [{"model": name, "weight": float(weight)} for name, weight in zip(names, weights, strict=True)]
        result = merged(entries, tmp_path / order)
        for name, value in load(Path(apart)).items():
            np.testing.assert_array_equal(result[name], value)
        assert json.loads((tmp_path / order / "config.json").read_text())["tie_word_embeddings"] is False
    half = merged([tied, apart], tmp_path / "half")
    np.testing.assert_allclose(half[HEAD], (load(Path(tied))[EMBED] + load(Path(apart))[HEAD]) / 2, rtol=1e-6)


def test_a_name_that_nothing_ties_is_still_missing(tmp_path: Path) -> None:
    names = [model(tmp_path / "a", 1, head=3, tied=False), model(tmp_path / "b", 2, tied=False)]
    with pytest.raises(InputError, match=r"lm_head\.weight is missing in .*b"):
        make_plan(parse({"rule": "linear", "models": names}, "test"))


def test_fisher_information_is_that_of_one_matrix(copies: list[str], tmp_path: Path) -> None:
    """The copies of a tied matrix take the Fisher information of its first name."""
    fishers = [model(tmp_path / f"f{seed}", seed, head=9, tied=False) for seed in (4, 5)]
    for path in fishers:
        tensors = load(Path(path))
        write_folder(Path(path + "-abs"), {name: np.abs(value) for name, value in tensors.items()})
    entries = [{"model": m, "fisher": f"{f}-abs"} for m, f in zip(copies[1:], fishers, strict=True)]
    result = merged(entries, tmp_path / "out", rule="fisher")
    np.testing.assert_array_equal(result[EMBED], result[HEAD])


def test_an_encoder_decoder_has_one_embedding(tmp_path: Path) -> None:
    """Old files of T5 hold all four names, newer ones the shared matrix alone."""
    generator = np.random.default_rng(0)
    shared = [generator.normal(size=(12, 4)).astype(np.float32) for _ in range(3)]
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    folders = []
    for number, matrix in enumerate(shared):
        tensors = dict.fromkeys(names if number else names[:1], matrix)
        folders.append(write_folder(tmp_path / f"m{number}", {**tensors, "norm.weight": np.ones(4, np.float32)}))
        (folders[-1] / "config.json").write_text(
            json.dumps({"model_type": "t5", "vocab_size": 12, "tie_word_embeddings": True})
        )
    options = {"rule": "dare_linear", "options": {"density": 0.5}}
    result = merged([str(folders[1]), str(folders[2])], tmp_path / "out", base=str(folders[0]), **options)
    expected = dare(shared[1:], shared[0], name="shared.weight", density=0.5, seed=0)
    assert sorted(result) == ["norm.weight", "shared.weight"]
    np.testing.assert_array_equal(result["shared.weight"], expected)
    result = merged([str(folders[1]), str(folders[0])], tmp_path / "four", base=str(folders[2]), **options)
    assert all(np.array_equal(result[name], result[names[0]]) for name in names)


@pytest.mark.parametrize(("tied", "message"), [(True, ""), (False, "lack tensors of the index: lm_head")])
def test_an_index_may_list_a_tied_name_that_no_shard_holds(tied: Any, message: str, tmp_path: Path) -> None:
    folder = Path(model(tmp_path / "a", 1, tied=tied))
    placed = dict.fromkeys((EMBED, NORM, HEAD), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors").rename(folder / placed[EMBED])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    if message:
        with pytest.raises(InputError, match=message):
            open_checkpoint(str(folder))
        return
    assert set(open_checkpoint(str(folder)).tensors) == {EMBED, NORM}
    full = model(tmp_path / "b", 2, copy=True)
    result = merged([full, str(folder)], tmp_path / "out")
    np.testing.assert_array_equal(result[HEAD], result[EMBED])


def test_files_without_a_configuration_are_tied_by_their_copies(tmp_path: Path) -> None:
    """A file that lacks a name which every other file has as a copy means the same matrix."""
    for name, seed, copy in (("a", 1, True), ("b", 2, False)):
        (Path(model(tmp_path / name, seed, copy=copy)) / "config.json").unlink()
    names = [str(tmp_path / name / "model.safetensors") for name in "ab"]
    expected = (load(tmp_path / "a")[EMBED] + load(tmp_path / "b")[EMBED]) / 2
    for order, models in (("ab", names), ("ba", names[::-1])):
        result = merged(models, tmp_path / f"out-{order}", common_only=True)
        np.testing.assert_allclose(result[EMBED], expected, rtol=1e-6)
        np.testing.assert_array_equal(result.get(HEAD, result[EMBED]), result[EMBED])
    model(tmp_path / "c", 3, head=4)
    with pytest.raises(InputError, match=r"lm_head\.weight is missing in"):
        make_plan(parse({"rule": "linear", "models": [str(tmp_path / "c" / "model.safetensors"), names[1]]}, "test"))


def test_equal_biases_of_different_layers_are_no_tied_ones(tmp_path: Path) -> None:
    """Both are zero at first; the two names of one layer's bias are tied."""
    head, same, other = "cls.predictions.bias", "cls.predictions.decoder.bias", "lm_head.bias"
    folders = []
    for seed, name in enumerate("mab"):
        folders.append(Path(model(tmp_path / name, seed)))
        tensors = {**load(folders[-1]), **dict.fromkeys((head, same, other), np.full(12, seed, np.float32))}
        write_file(folders[-1] / "new", tensors).rename(folders[-1] / "model.safetensors")
    options = {"rule": "dare_linear", "options": {"density": 0.5}}
    result = merged([str(f) for f in folders[1:]], tmp_path / "out", base=str(folders[0]), **options)
    np.testing.assert_array_equal(result[head], result[same])
    assert not np.array_equal(result[head], result[other])


@pytest.mark.parametrize("both", [True, False])
def test_tied_matrices_with_other_numbers_of_rows(both: bool, tmp_path: Path) -> None:
    folders = [Path(model(tmp_path / name, seed, copy=both or seed == 1)) for seed, name in ((1, "a"), (2, "b"))]
    cut = {name: value[:9] if name in (EMBED, HEAD) else value for name, value in load(folders[1]).items()}
    write_file(folders[1] / "new", cut).rename(folders[1] / "model.safetensors")
    result = merged([str(folder) for folder in folders], tmp_path / "out", common_rows=True)
    a = load(folders[0])[EMBED]
    np.testing.assert_allclose(result[EMBED][:9], (a[:9] + cut[EMBED]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(result[EMBED][9:], a[9:])
    np.testing.assert_array_equal(result[EMBED], result[HEAD])


def test_a_gradient_has_one_value_for_the_names_of_a_matrix(tmp_path: Path) -> None:
    """A copy of the embedding within a layer, as models that predict several tokens have, has the embedding's place."""
    inner, first = "model.layers.1.embed_tokens.weight", "model.layers.0.mlp.weight"
    folders = []
    for seed, name in enumerate("ab"):
        folders.append(model(tmp_path / name, seed))
        tensors = load(Path(folders[-1]))
        tensors |= {inner: tensors[EMBED], first: tensors[NORM]}
        write_file(Path(folders[-1]) / "new", tensors).rename(Path(folders[-1]) / "model.safetensors")
    entries = [{"model": folders[0], "weight": 1.0}, {"model": folders[1], "weight": {"layers": [0.0, 1.0]}}]
    result = merged(entries, tmp_path / "out", options={"normalize": False})
    np.testing.assert_array_equal(result[EMBED], load(Path(folders[0]))[EMBED])
    np.testing.assert_array_equal(result[inner], result[EMBED])


@pytest.mark.parametrize("form", range(16))
def test_the_result_is_what_the_tied_models_mean(form: int, tmp_path: Path) -> None:
    """Files with one name of a tied matrix, a copy, or a contradiction, each read as it is meant."""
    generator = np.random.default_rng(form)
    meant = []
    for name, kind in zip("ab", divmod(form, 4), strict=True):
        matrix, other = generator.normal(size=(2, 12, 4)).astype(np.float32)
        tensors = [{EMBED: matrix}, {HEAD: matrix}, {EMBED: matrix, HEAD: matrix}, {EMBED: matrix, HEAD: other}][kind]
        path = Path(model(tmp_path / name, 0))
        write_file(path / "new", {**tensors, NORM: np.ones(4, np.float32)}).rename(path / "model.safetensors")
        meant.append({EMBED: matrix, HEAD: tensors.get(HEAD, matrix)})
    result = merged([str(tmp_path / name) for name in "ab"], tmp_path / "out")
    tied = json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert tied is (3 not in divmod(form, 4))
    for name, other in ((EMBED, HEAD), (HEAD, EMBED)):
        value = result.get(name, result[other] if tied and other in result else None)
        np.testing.assert_allclose(value, (meant[0][name] + meant[1][name]) / 2, rtol=1e-5)
