"""A conversation as text: what each family's template writes and where the turns stand, against what is written here by hand."""

from collections.abc import Sequence

import pytest

from sightline.data.samples.templates import TEMPLATES, Template
from sightline.errors import ConfigError, RecordError
from sightline.types import IMAGE
from tests.data.kinds import KINDS, QWEN3, builder_of, tokenizer_of
from tests.data.samples.helpers import (
    AGAIN,
    ASKED,
    GA,
    LA,
    LLAVA,
    MORE,
    RULE,
    SAID,
    SMOL,
    THOUGHTS,
    TWO_TURNS,
    WRITTEN,
    A,
    E,
    turn,
)


def template_of(kind: str) -> Template:
    return builder_of(kind).template


def cut(text: str, at: Sequence[int]) -> list[str]:
    return [text[begin:end] for begin, end in zip([0, *at], [*at, len(text)], strict=True)]


def test_every_kind_is_written_down() -> None:
    assert set(WRITTEN) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_turns_stand_where_the_template_writes_them(kind: str) -> None:
    rendered = template_of(kind).conversation(TWO_TURNS)
    assert rendered.text == "".join(WRITTEN[kind])
    first, second = rendered.turns
    assert (first.index, second.index) == (1, 3)
    # "\n" after an end token belongs to the turn here; the mask leaves it out.
    assert cut(rendered.text, [first.start, first.end, second.start, second.end]) == [*WRITTEN[kind], ""]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_prompt_is_the_beginning_of_the_conversation_that_is_trained_on(kind: str) -> None:
    template = template_of(kind)
    whole = template.conversation(TWO_TURNS)
    assert template.render(TWO_TURNS[:3], prompt=True) == whole.text[: whole.turns[-1].start]
    single = template.conversation(TWO_TURNS[:2])
    assert template.render(TWO_TURNS[:1], prompt=True) == single.text[: single.turns[0].start]
    header = single.text[single.turns[0].header : single.turns[0].start]
    names = {"gemma": GA, "llama3": LA, "qwen3": A + THOUGHTS, "vicuna": "ASSISTANT:"}
    chatml = ("gpt2_chatml", "smollm2", "tinyvlm")
    assert header == (A if kind in chatml else names.get(kind, ""))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_system_message_is_written_or_refused(kind: str) -> None:
    messages = (turn("system", RULE), *TWO_TURNS)
    if kind == "gemma":
        with pytest.raises(RecordError, match="System role not supported") as caught:
            template_of(kind).conversation(messages)
        assert caught.value.reason == "template_refused"
        return
    rendered = template_of(kind).conversation(messages)
    assert RULE in rendered.text[: rendered.turns[0].header]
    assert SMOL not in rendered.text
    assert LLAVA not in rendered.text
    assert [turn.index for turn in rendered.turns] == [2, 4]
    assert rendered.text[rendered.turns[0].start : rendered.turns[0].end].strip().startswith(SAID)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_images_stand_wherever_the_messages_have_them(kind: str) -> None:
    messages = (
        turn("user", "Left ", None, " right ", None, None),
        turn("assistant", SAID),
        turn("user", AGAIN, None),
        turn("assistant", MORE),
    )
    text = template_of(kind).conversation(messages).text
    assert f"Left {IMAGE} right {IMAGE}{IMAGE}" in text
    assert f"{AGAIN}{IMAGE}" in text
    assert text.count(IMAGE) == 4


def own(source: str) -> Template:
    """A template of this source, on some tokenizer."""
    tokenizer = KINDS["qwen3"][0]()
    tokenizer.chat_template = source
    return Template(tokenizer)


def test_thoughts_are_fed_and_never_said_unless_the_template_always_thinks() -> None:
    rendered = template_of("qwen3").conversation(TWO_TURNS)
    assert [rendered.text[turn.start : turn.end] for turn in rendered.turns] == [SAID + E, MORE + E]
    always = own(QWEN3.replace("enable_thinking is false", "enable_thinking is string"))
    rendered = always.conversation(TWO_TURNS)
    assert [rendered.text[turn.start : turn.end] for turn in rendered.turns] == [SAID + E, THOUGHTS + MORE + E]


def test_answers_that_a_template_changes_later_are_found_or_refused() -> None:
    marked = "{% for message in messages %}{{ message.role + ': ' + message.content }}{{ '!' if loop.last }}{{ '\n' }}{% endfor %}"
    generation = "{% if add_generation_prompt %}assistant: {% endif %}"
    with pytest.raises(RecordError, match="changes the text before turn 1") as caught:
        own(marked + generation).conversation(TWO_TURNS)
    assert caught.value.reason == "template_moves_text"
    counted = "{{ messages | length }}" + marked.replace("{{ '!' if loop.last }}", "")
    with pytest.raises(RecordError) as caught:
        own(counted + generation).conversation(TWO_TURNS)
    assert caught.value.reason == "template_moves_text"


def test_an_answer_that_stands_in_the_question_too_is_the_one_of_its_turn() -> None:
    messages = (turn("user", SAID), turn("assistant", SAID), turn("user", SAID), turn("assistant", SAID))
    for kind in KINDS:
        rendered = template_of(kind).conversation(messages)
        first, second = (rendered.text[turn.start : turn.end] for turn in rendered.turns)
        assert first == second
        assert first.strip().startswith(SAID)
        assert first.count(SAID) == 1


def test_templates_that_write_the_date_write_the_same_every_day() -> None:
    dated = "{{ strftime_now('%d %b %Y, %d %B %Y, %Y-%m-%d') }} {% for message in messages %}{{ message.content }}{% endfor %}"
    assert own(dated).render(TWO_TURNS[:1]) == f"26 Jul 2024, 26 July 2024, 2024-07-26 {IMAGE}{ASKED}"


def test_markers_that_a_template_adds_or_loses_are_counted() -> None:
    for source in ("<image>{% for message in messages %}{{ message.content }}{% endfor %}", "{{ messages[0].content[7:] }}"):
        with pytest.raises(RecordError) as caught:
            own(source).conversation((turn("user", None, "x"),))
        assert caught.value.reason == "placeholder_count"


def test_multimodal_templates_get_parts_and_others_a_text() -> None:
    each = "{{ '<image>' if part.type == 'image' else part.text }}|"
    parts = "{% for message in messages %}{% for part in message.content %}" + each + "{% endfor %}{% endfor %}"
    assert own(parts).render(TWO_TURNS[:1]) == f"{IMAGE}|{ASKED}|"
    assert own("{{ messages[0].content }}").render(TWO_TURNS[:1]) == IMAGE + ASKED


def test_our_own_templates_are_known_by_name() -> None:
    assert sorted(TEMPLATES) == ["chatml", "plain", "vicuna"]
    with pytest.raises(ConfigError, match=r"unknown template 'llava'; known are auto, chatml, plain, vicuna"):
        Template(tokenizer_of("gpt2"), "llava")
    endless = KINDS["no_begin"][0]()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="needs eos_token"):
        Template(endless, "plain")
    Template(endless, "chatml")
