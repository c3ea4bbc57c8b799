"""The same merges for this package and for mergekit, whose answers `benchmarks/mergekit_conformance.py` recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS, COLUMNS = 6, 10


def inputs(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Models and base from a formula: float32, no two magnitudes alike."""
    place = np.arange(ROWS * COLUMNS, dtype=np.float64)
    base = np.sin(0.7 * place + 0.1) * (1.0 + place / 50.0)
    models = [
        base + 0.3 * np.cos((1.3 + i) * place + i) * (1.0 + ((3 * i + 7) * place % 11) / 11.0) for i in range(count)
    ]
    return [m.reshape(ROWS, COLUMNS).astype(np.float32) for m in models], base.reshape(ROWS, COLUMNS).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One merge: our rule and arguments; mergekit's method and parameters; whether the base counts as an input
    there."""

    name: str
    rule: str
    ours: dict[str, Any]
    method: str
    theirs: dict[str, Any]
    models: int = 3
    base: bool = True
    dtype: str = "float32"


W = [0.5, 0.3, 0.4]
CASES = [
    Case("linear", "linear", {"weights": W}, "linear", {"weight": W}, base=False),
    Case(
        "linear-sum",
        "linear",
        {"weights": W, "normalize": False},
        "linear",
        {"weight": W, "normalize": False},
        base=False,
    ),
    Case(
        "arithmetic", "task_arithmetic", {"weights": W, "scale": 0.7}, "task_arithmetic", {"weight": W, "lambda": 0.7}
    ),
    Case("slerp", "slerp", {"t": 0.3}, "slerp", {"t": 0.3}, models=2, base=False),
    Case("karcher", "karcher", {"max_iter": 50, "tol": 1e-7}, "karcher", {"max_iter": 50, "tol": 1e-7}, base=False),
    Case("ties", "ties", {"weights": W, "density": 0.5}, "ties", {"weight": W, "density": 0.5}),
    Case(
        "ties-negative",
        "ties",
        {"weights": [1.0, -0.5, 0.4], "density": 0.3, "scale": 0.6},
        "ties",
        {"weight": [1.0, -0.5, 0.4], "density": 0.3, "lambda": 0.6},
    ),
    Case(
        "ties-sum",
        "ties",
        {"weights": W, "density": 0.2, "normalize": False},
        "ties",
        {"weight": W, "density": 0.2, "normalize": False},
    ),
    Case("dare-linear-whole", "dare_linear", {"weights": W}, "dare_linear", {"weight": W}),
    Case("dare-ties-whole", "dare_ties", {"weights": W}, "dare_ties", {"weight": W}),
    Case("della-whole", "della", {"weights": W}, "della", {"weight": W}),
    Case("della-linear-whole", "della_linear", {"weights": W}, "della_linear", {"weight": W}),
    Case(
        "breadcrumbs",
        "breadcrumbs",
        {"weights": W, "density": 0.5, "gamma": 0.1},
        "breadcrumbs",
        {"weight": W, "density": 0.5, "gamma": 0.1},
    ),
    Case(
        "breadcrumbs-ties",
        "breadcrumbs_ties",
        {"weights": W, "density": 0.8, "gamma": 0.3},
        "breadcrumbs_ties",
        {"weight": W, "density": 0.8, "gamma": 0.3},
    ),
    Case("sce", "sce", {"select": 0.5}, "sce", {"select_topk": 0.5}),
    Case("sce-whole", "sce", {}, "sce", {}),
    Case("stock", "model_stock", {}, "model_stock", {}),
    Case("stock-filter", "model_stock", {"filter_wise": True}, "model_stock", {"filter_wise": True}),
    Case("ties-fraction", "ties", {"weights": W, "density": 0.33}, "ties", {"weight": W, "density": 0.33}),
    Case(
        "breadcrumbs-fraction",
        "breadcrumbs",
        {"weights": W, "density": 0.33},
        "breadcrumbs",
        {"weight": W, "density": 0.33},
    ),
    Case("sce-fraction", "sce", {"select": 0.33}, "sce", {"select_topk": 0.33}),
    Case(
        "dare-random",
        "dare_linear",
        {"weights": [1.0], "density": 0.4, "rescale": "l1"},
        "dare_linear",
        {"weight": [1.0], "density": 0.4},
        models=1,
    ),
    Case(
        "della-random",
        "della",
        {"weights": [1.0], "density": 0.4, "rescale": "l1"},
        "della",
        {"weight": [1.0], "density": 0.4},
        models=1,
    ),
    Case(
        "ties-bfloat16", "ties", {"weights": W, "density": 0.5}, "ties", {"weight": W, "density": 0.5}, dtype="bfloat16"
    ),
    Case("linear-bfloat16", "linear", {"weights": W}, "linear", {"weight": W}, base=False, dtype="bfloat16"),
]
