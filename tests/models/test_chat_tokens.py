"""Which tokens of a conversation have a loss, for templates of several styles; values worked by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merganser.errors import InputError
from merganser.models.base import Lengths
from merganser.models.chat_tokens import ChatTokens, Encoded, Prompt
from merganser.streams.answers import AnswerSpec
from merganser.streams.bad_rows import Problem
from merganser.streams.conversation import Conversation, Turn
from merganser.streams.dpo import DpoOptions
from merganser.streams.task import Example
from merganser.streams.turns import only_last_trained, read_tools, read_turns
from tests.models.conftest import Loader
from tests.tiny import CHAT_TEMPLATE

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|user|>system\nBe brief.<|end|>\n{% endif %}"
    "<|user|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
"""As SmolLM2's and Qwen's, with a system prompt of its own."""

MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% elif m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""As Llama 2's and Mistral's: no prompt for an answer, the end of text after every answer, no system prompts."""

END_ONCE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% else %}{{ eos_token }}{% endif %}"
)
"""The end of text once, after everything."""

BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

THINKING = (
    "{% for m in messages %}<|user|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
"""As Qwen 3's: the thoughts of earlier turns are removed."""

OPENED = (
    "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|user|><think>{% endif %}"
)
"""As DeepSeek R1's: the prompt for an answer begins a thought, which a finished turn does not have."""

TOOLS = (
    "{% if tools %}<|user|>{{ tools | tojson }}<|end|>{% endif %}{% for m in messages %}<|user|>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}call {{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)

TWO = [Turn("user", "a film"), Turn("assistant", "good"), Turn("user", "a play"), Turn("assistant", "a bad end")]


def chat(*turns: Turn, tools: str = "") -> Conversation:
    return Conversation(turns, tools)


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders["chat"])


def tokens(
    tokenizer: Any, template: str, system: str | None = None, lengths: tuple[int, int] = (400, 60)
) -> ChatTokens:
    tokenizer.chat_template = template
    return ChatTokens(tokenizer, "own/model", system, Lengths(*lengths), [tokenizer.eos_token_id])


def parts(tokenizer: Any, encoded: Encoded | Problem) -> list[str]:
    """The text of each part, beginning with one that has no loss, then alternately with and without."""
    assert isinstance(encoded, Encoded), encoded
    borders = [0, *(place for span in encoded.spans for place in span)]
    return [tokenizer.decode(encoded.ids[a:b]) for a, b in itertools.pairwise(borders)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            MARKED,
            [
                "<|user|>a film<|end|><|assistant|>",
                "good<|end|>",
                "<|user|>a play<|end|><|assistant|>",
                "a bad end<|end|>",
            ],
        ),
        (
            CHATML,
            [
                "<|user|>system\nBe brief.<|end|>\n<|user|>user\na film<|end|>\n<|user|>assistant\n",
                "good<|end|>",
                "\n<|user|>user\na play<|end|>\n<|user|>assistant\n",
                "a bad end<|end|>",
            ],
        ),
        (INST, ["<s>[INST] a film [/INST]", " good<|end|>", "[INST] a play [/INST]", " a bad end<|end|>"]),
        (
            END_ONCE,
            ["user: a film\nassistant:", " good\n", "user: a play\nassistant: ", "a bad end\n<|end|>"],
        ),
        (BARE, ["user: a film\nassistant:", " good\n", "user: a play\nassistant: ", "a bad end\n<|end|>"]),
    ],
    ids=["with marks", "a default system prompt", "Llama 2", "one end", "no end"],
)
def test_the_loss_is_on_what_the_assistant_says_and_its_end(tokenizer: Any, template: str, expected: list[str]) -> None:
    chats = tokens(tokenizer, template)
    (encoded,) = chats.encode([chat(*TWO)])
    assert parts(tokenizer, encoded) == expected
    (last,) = chats.encode([chat(*only_last_trained(TWO))])
    assert parts(tokenizer, last) == ["".join(expected[:3]), expected[3]]
    assert isinstance(encoded, Encoded)
    (prompt,) = chats.prompt_ids([chat(*TWO[:3])])  # what the model continues when it is evaluated
    assert prompt == encoded.ids[: encoded.spans[-1][0]].tolist()


def test_the_mask_is_the_tokenizers_own_where_there_are_marks(tokenizer: Any) -> None:
    chats = tokens(tokenizer, MARKED)
    conversations = [chat(*TWO), chat(*TWO[:2]), chat(Turn("user", "ü 漢"), Turn("assistant", "the film was good"))]
    for conversation, encoded in zip(conversations, chats.encode(conversations), strict=True):
        own = tokenizer.apply_chat_template(
            conversation.messages(), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert isinstance(encoded, Encoded)
        mask = [int(any(a <= i < b for a, b in encoded.spans)) for i in range(len(encoded.ids))]
        assert (encoded.ids.tolist(), mask) == (own["input_ids"], own["assistant_masks"])


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    turns = [TWO[0], Turn("assistant", "<think>hm</think>good"), *TWO[2:]]
    chats = tokens(tokenizer, THINKING)
    rewritten, kept, one = chats.encode([chat(*turns), chat(*only_last_trained(turns)), chat(*turns[:2])])
    assert isinstance(rewritten, Problem)
    assert "it changes earlier turns when later ones follow" in str(rewritten)
    assert "train_turns: last" in rewritten.remedy_text()
    assert parts(tokenizer, kept)[1] == "a bad end<|end|>"
    assert parts(tokenizer, one)[1] == "<think>hm</think>good<|end|>"
    (opened,) = tokens(tokenizer, OPENED).encode([chat(*TWO)])
    assert "begins an answer in another way than the prompt for one" in str(opened)
    half = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    (unmarked,) = tokens(tokenizer, half).encode([chat(*TWO)])
    assert "marks 1 of 2 turns" in str(unmarked)


def test_system_prompts(tokenizer: Any) -> None:
    chats = tokens(tokenizer, CHATML, system="Be kind.")
    own = [Turn("system", "Be rude."), *TWO[:2]]
    given, added = chats.encode([chat(*own), chat(*TWO[:2])])
    assert parts(tokenizer, given)[0].startswith("<|user|>system\nBe rude.<|end|>\n<|user|>user\na film")
    assert parts(tokenizer, added)[0].startswith("<|user|>system\nBe kind.<|end|>\n<|user|>user\na film")
    assert chats.default_system == "Be brief."
    assert [tokens(tokenizer, template).default_system for template in (MARKED, INST, CHAT_TEMPLATE)] == ["", "", ""]
    failed, fine = tokens(tokenizer, INST).encode([chat(*own), chat(*TWO[:2])])
    assert str(failed) == "the chat template fails: TemplateError: System role not supported"
    assert isinstance(fine, Encoded)  # the others are not harmed
    chats = tokens(tokenizer, INST, system="Be kind.")
    with pytest.raises(InputError, match=r"^The chat template fails: TemplateError: System"):
        chats.prompt_ids([chat(TWO[0])])


def test_tools(tokenizer: Any) -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "clock", "arguments": '{"z": 1}'}}],
    }
    messages = [
        {"role": "user", "content": "time?"},
        call,
        {"role": "tool", "content": "12:00"},
        {"role": "assistant", "content": "noon"},
    ]
    (encoded,) = tokens(tokenizer, TOOLS).encode([chat(*read_turns(messages), tools=read_tools([{"name": "clock"}]))])
    assert parts(tokenizer, encoded) == [
        '<|user|>[{"name": "clock"}]<|end|><|user|>user\ntime?<|end|><|user|>assistant\n',
        'call clock {"z": 1}<|end|>',
        "<|user|>tool\n12:00<|end|><|user|>assistant\n",
        "noon<|end|>",
    ]


def test_long_conversations_lose_their_earliest_exchanges(tokenizer: Any) -> None:
    turns = [Turn("system", "Be kind.")]
    for number in range(9):
        turns += [Turn("user", f"question {number}"), Turn("assistant", f"answer {number}")]
    chats = tokens(tokenizer, CHATML)
    (whole,) = chats.encode([chat(*turns)])
    assert isinstance(whole, Encoded)
    assert len(whole.spans) == 9
    for kept in (8, 3, 1):
        context = chat(turns[0], *turns[1 + 2 * (9 - kept) : -1])
        (room,) = map(len, chats.prompt_ids([context]))
        for more in (0, 1):  # one token more makes no difference
            short = tokens(tokenizer, CHATML, lengths=(room + more, 60))
            (encoded,) = short.encode([chat(*turns)])
            assert isinstance(encoded, Encoded)
            assert encoded.cut
            assert parts(tokenizer, encoded)[0].startswith("<|user|>system\nBe kind.<|end|>\n<|user|>user\nquestion")
            assert len(encoded.spans) == kept
            (prompt,) = short.prompts([chat(*turns[:-1])])
            assert isinstance(prompt, Prompt)
            assert (prompt.conversation, prompt.cut) == (context, True)
    assert chats.encode([chat(*turns)])[0] is whole  # kept from before


def test_what_cannot_be_shortened_at_turns(tokenizer: Any) -> None:
    long = chat(Turn("system", "Be kind."), Turn("user", "a bad film " * 50), Turn("assistant", "the film was good"))
    (fixed,) = map(len, tokens(tokenizer, CHATML).prompt_ids([chat(long.turns[0], Turn("user", "x"))]))
    chats = tokens(tokenizer, CHATML, lengths=(fixed + 20, 3))
    (encoded,) = chats.encode([long])
    assert isinstance(encoded, Encoded)
    assert (encoded.cut, encoded.answer_cut) == (True, True)
    text, answer = parts(tokenizer, encoded)
    assert text.startswith("<|user|>system\nBe kind.<|end|>\n<|user|>user\na bad film a bad")
    assert text.endswith("<|end|>\n<|user|>assistant\n")
    assert "the film was good".startswith(answer)
    assert fixed < encoded.spans[0][0] <= fixed + 20
    assert encoded.spans[0][1] - encoded.spans[0][0] == 3
    unset = CHATML.replace("Be brief.", "")
    (least,) = map(len, tokens(tokenizer, unset).prompt_ids([chat(Turn("user", "x"))]))
    without = tokens(tokenizer, unset, lengths=(least + 1, 3))  # no room for the system prompt
    (prompt,) = without.prompts([long.context])
    assert isinstance(prompt, Prompt)
    assert not prompt.conversation.has_system
    with pytest.raises(InputError, match="takes more than the input length of 4 tokens"):
        tokens(tokenizer, CHATML, lengths=(4, 3)).encode([long])


def test_turns_without_a_loss(tokenizer: Any) -> None:
    turns = [TWO[0], Turn("assistant", "good", trained=True), TWO[2], Turn("assistant", "bad", trained=False)]
    (encoded,) = tokens(tokenizer, MARKED).encode([chat(*turns)])
    assert parts(tokenizer, encoded) == ["<|user|>a film<|end|><|assistant|>", "good<|end|>"]
    for template in (MARKED, BARE):  # a mean loss over no tokens would be no number
        short = tokens(tokenizer, template)
        short.lengths = Lengths(len(short.prompt_ids([chat(TWO[2])])[0]), 60)
        cut, without = short.encode([chat(*turns), chat(*turns[2:])])
        assert "no turn with a loss is left" in str(cut)
        assert "no turn has a loss" in str(without)


def test_an_answer_of_which_nothing_is_rendered(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    call = Turn("assistant", "", extra='{"tool_calls": []}')
    (encoded,) = tokens(tokenizer, template).encode([chat(TWO[0], call)])
    assert parts(tokenizer, encoded) == ["a film", tokenizer.eos_token]


def test_features_of_conversations_texts_and_pairs(load: Loader) -> None:
    backbone = load("chat", lengths=Lengths(60, 20))
    chosen = Example.of_conversation(chat(*only_last_trained(TWO)))
    pair = replace(chosen, rejected="good")
    one = Example.of_conversation(chat(*TWO[:2]))
    spec = AnswerSpec(dpo=DpoOptions())
    conversation, text, same = backbone.features([chosen, Example("a film", "good"), one], AnswerSpec())
    labels = backbone.collate([conversation, text, same])["labels"].tolist()
    decode = backbone.tokenizer.decode
    assert [decode([token for token in row if token >= 0]) for row in labels] == [
        "a bad end<|end|>",
        "good<|end|>",
        "good<|end|>",
    ]
    assert same["input_ids"] == text["input_ids"]  # an instruction is a turn of a user and one of the assistant
    (feature,) = backbone.features([pair], spec)
    prompt = "<|user|>a film<|end|><|assistant|>good<|end|><|user|>a play<|end|><|assistant|>"
    assert [decode(feature[side]["input_ids"]) for side in ("chosen", "rejected")] == [
        f"{prompt}a bad end<|end|>",
        f"{prompt}good<|end|>",
    ]
    labels = backbone.collate([feature])["labels"].tolist()
    assert [decode([token for token in row if token >= 0]) for row in labels] == ["a bad end<|end|>", "good<|end|>"]
    read = backbone.answer([one.read, "a film"], AnswerSpec())  # type: ignore[list-item]
    assert read[0] == read[1]
