"""Compare a tokenizer with the embedding of its model: a token beyond the last row cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from merganser.errors import InputError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
"""Special tokens that a tokenizer may put into any text."""

RESIZE = (
    "Resize the model (model.resize_token_embeddings(len(tokenizer))) and save both; or use the tokenizer that belongs "
    "to the model."
)


def unreadable_tokens(tokenizer: Any, config: Any, name: str) -> tuple[str, ...]:
    """Return added tokens that the model has no embedding for; texts without them can be read.

    Some published models have such tokens for other uses, such as images.

    Args:
        tokenizer: set up as in the run.
        config: of the model.
        name: of the model, for messages.

    Raises:
        InputError: more than added tokens is beyond the embedding, or a token that may be in any text is.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(rows, int):
        return ()
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return ()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    needed = [token for role in ROLES if (token := getattr(tokenizer, role, None)) in beyond]
    needed += sorted(beyond.keys() - added)
    if needed:
        raise InputError(
            f"The tokenizer of {name} is larger than the model's embedding of {rows} rows: "
            f"'{needed[0]}' has the number {beyond[needed[0]]}.",
            RESIZE,
        )
    return tuple(sorted(beyond))


def refuse_unreadable(tokens: tuple[str, ...], texts: Iterable[str], name: str) -> None:
    """Refuse texts with tokens that the model has no embedding for.

    Raises:
        InputError: naming the token and the beginning of the text.
    """
    if not tokens:
        return
    pattern = re.compile("|".join(map(re.escape, tokens)))
    for text in texts:
        match = pattern.search(text)
        if match is not None:
            raise InputError(
                f"The model {name} has no embedding for the token '{match[0]}' in the text '{text[:60]}'.",
                f"Remove the token from the text. Or: {RESIZE[0].lower()}{RESIZE[1:]}",
            )
