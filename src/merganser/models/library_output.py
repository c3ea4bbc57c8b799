"""Silence transformers, huggingface_hub and PEFT while they load and save: output would break the live display."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence_bitsandbytes() -> None:
    """Drop what bitsandbytes logs below an error.

    It is imported by transformers wherever it is installed, and reports kernels that this processor could have, used or
    not; where it is used, every product of 8-bit weights in bf16 or fp32, which is how they are meant to be used.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Switch progress bars, log messages and warnings of these libraries off inside, and restore them afterwards.

    Exceptions pass through.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as verbosity_of

    verbosity = verbosity_of.get_verbosity()
    bars_enabled = verbosity_of.is_progress_bar_enabled()
    hub_bars_disabled = are_progress_bars_disabled()
    if verbosity != verbosity_of.ERROR:  # setting it empties the caches of all loggers, also where nothing changes
        verbosity_of.set_verbosity_error()
    verbosity_of.disable_progress_bar()  # also switches those of huggingface_hub off
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if verbosity_of.get_verbosity() != verbosity:
            verbosity_of.set_verbosity(verbosity)
        if bars_enabled:
            verbosity_of.enable_progress_bar()
            if hub_bars_disabled:
                disable_progress_bars()
