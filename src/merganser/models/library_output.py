"""Silence transformers, huggingface_hub and PEFT while they load and save: output would break the live display."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Switch progress bars, log messages and warnings of these libraries off inside, and restore them afterwards.

    Exceptions pass through.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars_enabled = logging.is_progress_bar_enabled()
    hub_bars_disabled = are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # also switches those of huggingface_hub off
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars_enabled:
            logging.enable_progress_bar()
            if hub_bars_disabled:
                disable_progress_bars()
