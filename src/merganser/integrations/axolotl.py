"""AimMerging as a plugin of Axolotl.

In the YAML file of a task that follows others::

    plugins:
      - merganser.integrations.axolotl.AimMergingPlugin
    aim_merging:
      memory: [memory/products-1]        # examples of earlier tasks
      keep: {folder: memory/products-2, number: 200}
      settings: {interval: 20, threshold_factor: 2.0}

The memory consists of examples as Axolotl has prepared them: ``keep`` writes some of this task's into a folder, when
its training begins, for the tasks after it. Written against the interface of
``axolotl.integrations.base.BasePlugin``: a class that is named by its path, ``get_input_args`` for its keys of the
file, and ``add_callbacks_post_trainer``. It is tested with a class of that interface, not with Axolotl itself.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merganser import processes
from merganser.errors import InputError
from merganser.options import StrictOptions, first_problem, problem_text
from merganser.training.aim.callback import AimMerging

KEY = "aim_merging"


class KeepOptions(StrictOptions):
    """Examples of this task that later tasks rehearse."""

    folder: str = Field(min_length=1, description="folder to write, which must not exist")
    number: int = Field(200, ge=1, description="examples drawn at random; all, if the task has fewer")


class AimMergingOptions(StrictOptions):
    """The plugin's section of a configuration."""

    memory: list[str] = Field(
        default_factory=list, description="folders of examples of earlier tasks; none for the first task"
    )
    keep: KeepOptions | None = Field(None, description="examples of this task to keep; null: none")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of AimMerging, as in AimConfig")


class AimMergingArgs(BaseModel):
    """Keys of the plugin in Axolotl's configuration, which merges this class into its own."""

    model_config = ConfigDict(extra="allow")

    aim_merging: dict[str, Any] | None = None


def _base() -> Any:
    """Return Axolotl's class of plugins, whose other hooks do nothing; a plain class where there is no Axolotl."""
    try:
        return importlib.import_module("axolotl.integrations.base").BasePlugin
    except ImportError:
        return object


class AimMergingPlugin(_base()):  # type: ignore[misc]
    """Adds AimMerging to Axolotl's trainer, with the trainer's own loss for ``rl: dpo``, ``grpo`` and the like."""

    def get_input_args(self) -> str:
        """Return the path of the class with the plugin's keys."""
        return f"{AimMergingArgs.__module__}.{AimMergingArgs.__qualname__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Return the callback; none without a memory.

        Raises:
            InputError: a wrong key, a folder of the memory that is not there or holds no data set, a folder to write
                that exists.
        """
        options = read_options(getattr(cfg, KEY, None))
        if options.keep is not None:
            keep_examples(trainer.train_dataset, options.keep, int(getattr(cfg, "seed", None) or 0))
        if not options.memory:
            return []
        more: dict[str, Any] = {}
        if getattr(cfg, "rl", None):
            from merganser.integrations.trl import loss_of

            more["loss"] = loss_of(trainer)
        return [AimMerging(read_memory(options.memory), **more, **options.settings)]


def read_options(section: Mapping[str, Any] | None) -> AimMergingOptions:
    """Return the plugin's section of a configuration.

    Raises:
        InputError: there is none, or a key in it is unknown or has a wrong value.
    """
    if section is None:
        raise InputError(f"The plugin AimMerging finds no section '{KEY}'.", f"Add '{KEY}:' with 'memory' or 'keep'.")
    values = dict(section)
    if isinstance(values.get("memory"), str):
        values["memory"] = [values["memory"]]
    try:
        return AimMergingOptions.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error)
        path = ".".join(map(str, (KEY, *problem["loc"])))
        raise InputError(f"{path}: {problem_text(problem)}", "See docs/python.md, Axolotl.") from error


def read_memory(folders: list[str]) -> Any:
    """Read and join data sets that :func:`keep_examples`, or ``save_to_disk`` of ``datasets``, wrote.

    Raises:
        InputError: a folder is not there, or holds no data set.
    """
    import datasets

    parts = []
    for folder in folders:
        try:
            parts.append(datasets.load_from_disk(folder))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{KEY}.memory: '{folder}' holds no data set: {error}", f"Name a folder that '{KEY}.keep' wrote."
            ) from error
    return datasets.concatenate_datasets(parts)


@processes.main_only
def keep_examples(dataset: Any, options: KeepOptions, seed: int) -> None:
    """Write some examples of a task, drawn with a seed, in the order of the data set; of several processes, the first.

    Raises:
        InputError: the folder exists, or the training data is a stream.
    """
    import numpy as np

    if os.path.lexists(options.folder):
        raise InputError(f"{KEY}.keep: '{options.folder}' exists.", "Choose a new folder.")
    if not hasattr(dataset, "select"):
        raise InputError(f"{KEY}.keep: the training data is a stream, of which no examples can be drawn.", "Leave it.")
    size = len(dataset)
    chosen = np.random.default_rng([seed, 0]).permutation(size)[: options.number]
    Path(options.folder).parent.mkdir(parents=True, exist_ok=True)
    dataset.select(sorted(chosen.tolist())).save_to_disk(options.folder)
