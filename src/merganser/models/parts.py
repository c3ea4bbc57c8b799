"""Where the tokens of texts and the vectors of labels come from: they are made, or taken from where they were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class Parts:
    """Makes everything anew; a run that has parts in common with others replaces it in its backbone.

    Attributes:
        shares: whether something is kept, and read elsewhere.
    """

    shares = False

    def tokens(self, what: str, content: Sequence[Any], make: Callable[[], list[Any]]) -> list[Any]:
        """Return what ``make`` returns.

        Args:
            what: kind of the rows; rows of two kinds differ though their content is equal.
            content: all that they are made of, beside the tokenizer and the options of the model.
            make: returns rows of lists, of mappings with texts as keys, and of whole numbers.
        """
        return make()

    def vectors(self, content: Sequence[Any], make: Callable[[], Tensor]) -> Tensor:
        """Return what ``make`` returns: one vector per label (labels x width), fp32.

        Args:
            content: texts or images of each label, all that the vectors are made of beside the pretrained model.
        """
        return make()
