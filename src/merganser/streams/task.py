"""Tasks and streams: what is learned, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import TYPE_CHECKING

from merganser.errors import InputError
from merganser.metrics.function import MetricFunction, metric_name
from merganser.streams.answers import AnswerSpec
from merganser.streams.conversation import Conversation, Turn
from merganser.streams.mixing import rows_with_mix

if TYPE_CHECKING:
    from merganser.streams.images.picture import Picture


@dataclass(frozen=True, slots=True)
class Example:
    """One text, image or conversation, and its correct answer.

    ``input`` is the text as the model reads it (prompt applied). With an ``image`` the model reads that, and ``input``
    is only its name. With a ``conversation`` a model with a chat template reads that up to its last turn, which is the
    answer; ``input`` is the same role by role (:meth:`of_conversation`). With a ``rejected`` answer, ``output`` is the
    one that is preferred to it.

    ``row`` is the 1-based line or number in the source, for messages; 0 where there is none.
    """

    input: str
    output: str
    id: str = ""
    image: Picture | None = None
    conversation: Conversation | None = None
    rejected: str | None = None
    row: int = field(default=0, compare=False, repr=False)

    @classmethod
    def of_conversation(cls, conversation: Conversation, id: str = "", row: int = 0) -> Example:
        """Make an example of a conversation whose last turn is the answer."""
        return cls(str(conversation.context), conversation.answer.text.strip(), id, None, conversation, row=row)

    def with_rejected(self) -> Example:
        """Return a pair as an example of its rejected answer alone."""
        assert self.rejected is not None
        if self.conversation is None:
            return replace(self, output=self.rejected, rejected=None)
        turns = (*self.conversation.context.turns, Turn("assistant", self.rejected))
        chat = replace(self.conversation, turns=turns)
        return replace(self, output=self.rejected, rejected=None, conversation=chat)

    @property
    def answers(self) -> tuple[str, ...]:
        """Return the correct answer; of a pair, the chosen and the rejected one."""
        return (self.output,) if self.rejected is None else (self.output, self.rejected)

    @property
    def read(self) -> str | Picture | Conversation:
        """Return the text, image or beginning of a conversation that the model reads."""
        if self.conversation is not None:
            return self.conversation.context
        return self.input if self.image is None else self.image

    @property
    def identity(self) -> str:
        """Return the text that the model reads, or the SHA-256 of the image, which does not depend on its place."""
        if self.conversation is not None:
            return self.conversation.context.identity
        return self.input if self.image is None else self.image.sha256

    @property
    def learned(self) -> str:
        """Return :attr:`identity`, with the rejected answer of a pair, and of a conversation with its answer and which
        turns are trained."""
        whole = self.identity if self.conversation is None else self.conversation.identity
        return whole if self.rejected is None else f"{whole}\0{self.rejected}"

    @property
    def texts(self) -> tuple[str, ...]:
        """Return every text that may reach the model."""
        read = (self.input, self.output) if self.conversation is None else tuple(self.conversation.texts())
        return read if self.rejected is None else (*read, self.rejected)

    @property
    def nbytes(self) -> int:
        """Return the bytes needed to store it: of input and answers in UTF-8, and of an encoded image."""
        if self.conversation is not None:
            return len(self.learned.encode())
        text = sum(len(text.encode()) for text in self.texts)
        return text if self.image is None else text + self.image.nbytes


@dataclass(frozen=True)
class Mix:
    """Other data that a task is trained on beside its own, such as general instructions.

    Attributes:
        examples: they are cycled through; none is kept for rehearsal.
        share: fraction of the training rows that are theirs, above 0 and below 1.
        source: where they came from (file name and SHA-256), for the record.

    Raises:
        InputError: a share outside of (0, 1), or no examples.
    """

    examples: Sequence[Example]
    share: float
    source: str = "mix"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"The share of mixed data is {self.share:g}.", "Give a number between 0 and 1.")
        if not self.examples:
            raise InputError("There are no examples to mix in.", "Give at least one, or leave the mix out.")
        object.__setattr__(self, "share", float(self.share))  # as a number of numpy, it would be written otherwise


@dataclass(frozen=True)
class Task:
    """One task: examples, and how they are answered and scored.

    Attributes:
        name: unique within a run; also the name of a folder.
        train, dev, test: examples; dev and test may be empty.
        spec: labels, prompt, metric, and whether answers are written or ranked.
        source: where the data came from (file names and SHA-256 sums), for the record.
        remarks: what a person should know about the data before learning, such as rows that were skipped.
        mix: other data that training reads as well.

    ``Task(..., metric=...)`` sets the metric of ``spec``: a name, or a function of answers, references and inputs that
    returns one score in [0, 1] per example (:data:`merganser.metrics.function.MetricFunction`).

    A task made in Python is checked with :func:`merganser.streams.checks.check_task`.
    """

    name: str
    train: Sequence[Example]
    dev: Sequence[Example] = ()
    test: Sequence[Example] = ()
    spec: AnswerSpec = field(default_factory=AnswerSpec)
    source: Mapping[str, str] = field(default_factory=dict)
    metric: InitVar[str | MetricFunction | None] = None
    remarks: Sequence[str] = ()
    mix: Mix | None = None

    def __post_init__(self, metric: str | MetricFunction | None) -> None:
        if metric is not None:
            object.__setattr__(self, "spec", replace(self.spec, metric=metric))

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Return the closed set of answers, in a fixed order; ``None`` for free text."""
        return self.spec.labels

    @property
    def rows_per_epoch(self) -> int:
        """Return the rows of one pass over the training examples, mixed ones included."""
        return len(self.train) if self.mix is None else rows_with_mix(len(self.train), self.mix.share)

    def fingerprint(self) -> str:
        """Compute the SHA-256 of everything that influences a result; it does not depend on the names of the files."""
        digest = hashlib.sha256()
        spec = self.spec
        texts = repr(sorted(spec.label_texts.items()))
        synonyms = [repr(sorted(spec.synonyms.items()))] if spec.synonyms else []
        dpo = [repr(spec.dpo)] if spec.dpo else []
        parts = (self.name, metric_name(spec.metric), spec.mode, spec.prompt, repr(spec.labels), texts)
        for part in (*parts, *synonyms, *dpo):
            digest.update(part.encode() + b"\0")
        for split in (self.train, self.dev, self.test):
            digest.update(b"\1")
            _hash_examples(digest, split)
        if self.mix is not None:
            digest.update(f"\1mix {self.mix.share!r}".encode())
            _hash_examples(digest, self.mix.examples)
        return digest.hexdigest()

    def split_digests(self) -> dict[str, str]:
        """Compute the SHA-256 of the inputs and answers of ``train``, ``dev``, ``test`` and ``mix``; none of an empty
        part."""
        digests = {}
        mixed = () if self.mix is None else self.mix.examples
        for name, examples in (("train", self.train), ("dev", self.dev), ("test", self.test), ("mix", mixed)):
            if examples:
                digest = hashlib.sha256()
                _hash_examples(digest, examples)
                digests[name] = digest.hexdigest()
        return digests


def _hash_examples(digest: hashlib._Hash, examples: Sequence[Example]) -> None:
    for example in examples:
        digest.update(example.learned.encode() + b"\0" + example.output.encode() + b"\0")


@dataclass(frozen=True)
class Stream:
    """Tasks in the order in which they are learned."""

    name: str
    tasks: tuple[Task, ...]
