"""The label mask, for every kind of tokenizer and template, against texts that are written down by hand.

What is supervised is read back by decoding, which knows nothing of offsets; what stands before it must be what `generate` is fed.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from sightline.data.images.tilings import Layout, WholeConfig
from sightline.data.samples.encoding import ConversationEncoder, EncodedConversation, TextRules, shared_prefix
from sightline.data.samples.templates import Template
from sightline.errors import RecordError
from sightline.types import IMAGE, ImageInfo, Message, Record, Span
from tests.data.kinds import KINDS, SPLIT_TILING, builder_of, tokenizer_of
from tests.data.samples.helpers import GA, LA, MORE, SAID, THOUGHTS, TWO_TURNS, WRITTEN, A, turn

WHOLE = WholeConfig()
ONE = WHOLE.layout(10, 10, (2, 2))
HEADERS = {"gemma": GA, "gpt2_chatml": A, "llama3": LA, "qwen3": A, "smollm2": A, "tinyvlm": A, "vicuna": "ASSISTANT:"}
LOSSLESS = sorted(set(KINDS) - {"qwen3", "unigram"})  # those two normalise; decoding gives the normal form


def rules(**changes: Any) -> TextRules:
    return TextRules(**{"grid": (2, 2), "tiling": WHOLE, **changes})


@cache
def kept_builder(kind: str) -> ConversationEncoder:
    return builder_of(kind, rules(max_tokens=600))


def encoded(kind: str, text: str) -> list[int]:
    """Ids of a text in one go."""
    return tokenizer_of(kind)(text, add_special_tokens=False)["input_ids"]


def decoded(kind: str, ids: Sequence[int]) -> str:
    text = tokenizer_of(kind).decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def spoken(kind: str, row: EncodedConversation) -> list[str]:
    """The text of each span, edges aside: decoders of the SentencePiece kind drop or add a space there."""
    return [decoded(kind, row.ids[span.start : span.end]).strip(" ") for span in row.spans]


def expanded(kind: str, text: str, slots: int = 4) -> list[int]:
    """Ids of a text with each image token repeated."""
    marker = tokenizer_of(kind).convert_tokens_to_ids(IMAGE)
    return [token for token in encoded(kind, text) for _ in range(slots if token == marker else 1)]


def refused(
    conversation_encoder: ConversationEncoder, messages: Sequence[Message], layouts: Sequence[Layout], verify: bool = True
) -> str:
    with pytest.raises(RecordError) as caught:
        conversation_encoder.encode_conversation(messages, layouts, verify)
    return caught.value.reason


# Which tokens are supervised ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_answers_and_their_end_tokens_are_supervised(kind: str) -> None:
    row = builder_of(kind).encode_conversation(TWO_TURNS, [ONE], verify=True)
    assert row.ids.tolist() == expanded(kind, "".join(WRITTEN[kind]))
    assert [span.turn for span in row.spans] == [1, 3]
    assert spoken(kind, row) == [WRITTEN[kind][1].strip(), WRITTEN[kind][3].strip()]
    assert all(tokenizer_of(kind).added_tokens_decoder[int(row.ids[span.end - 1])].special for span in row.spans)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_stands_before_an_answer_is_what_generate_is_fed(kind: str) -> None:
    conversation_encoder = builder_of(kind)
    row = conversation_encoder.encode_conversation(TWO_TURNS, [ONE], verify=True)
    fed = conversation_encoder.encode_prompt(TWO_TURNS[:3], [ONE])
    assert row.ids[: row.spans[1].start].tolist() == fed.ids.tolist()
    assert fed.slots.tolist() == row.slots.tolist()
    single = conversation_encoder.encode_conversation(TWO_TURNS[:2], [ONE], verify=True)
    assert single.ids[: single.spans[0].start].tolist() == conversation_encoder.encode_prompt(TWO_TURNS[:1], [ONE]).ids.tolist()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_with_header_the_turns_own_header_is_supervised_too(kind: str) -> None:
    row = builder_of(kind, rules(supervise="with_header")).encode_conversation(TWO_TURNS, [ONE], verify=True)
    header = HEADERS.get(kind, "")
    second = header + (THOUGHTS if kind == "qwen3" else "")
    expected = [(header + WRITTEN[kind][1]).strip(), (second + WRITTEN[kind][3]).strip()]
    assert spoken(kind, row) == expected


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_text_is_all_but_images_and_what_nothing_precedes(kind: str) -> None:
    row = builder_of(kind, rules(supervise="all_text")).encode_conversation(TWO_TURNS, [ONE])
    labels = {place for span in row.spans for place in range(span.start, span.end)}
    assert labels == set(range(1, len(row.ids))) - set(row.slots.tolist())
    assert row.num_supervised == len(labels)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_with_padding_the_row_is_filled_up_and_the_filling_supervised(kind: str) -> None:
    plain = builder_of(kind, rules(max_tokens=300)).encode_conversation(TWO_TURNS, [ONE])
    row = builder_of(kind, rules(max_tokens=300, supervise="with_padding")).encode_conversation(TWO_TURNS, [ONE])
    tokenizer = tokenizer_of(kind)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    size = len(plain.ids)
    assert row.ids.tolist() == plain.ids.tolist() + [pad] * (300 - size)
    assert row.num_supervised == plain.num_supervised + 300 - size
    assert row.spans[-1].end == 300
    assert all(span.turn in (1, 3) for span in row.spans)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"gemma"}))
def test_a_system_message_is_not_supervised(kind: str) -> None:
    row = builder_of(kind).encode_conversation((turn("system", "Be brief."), *TWO_TURNS), [ONE], verify=True)
    assert [span.turn for span in row.spans] == [2, 4]
    assert spoken(kind, row) == [WRITTEN[kind][1].strip(), WRITTEN[kind][3].strip()]


def test_a_conversation_is_tokenised_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    conversation_encoder = builder_of("stories")
    call = PreTrainedTokenizerFast.__call__

    def counted(self: PreTrainedTokenizerFast, text: str, **options: Any) -> Any:
        seen.append(text)
        return call(self, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    conversation_encoder.encode_conversation(TWO_TURNS, [ONE])
    assert seen == ["".join(WRITTEN["stories"])]


# Any text -----------------------------------------------------------------------------------------------------------------------

SCRIPTS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.lists(
        st.sampled_from([" ", "\n", "  ", "dog", "狗", "क्षि", "👩\u200d👩\u200d👧", "e\u0301", "ﬁ", "ﷺ", "\u202eabc", "…"]),
        max_size=8,
    ).map("".join),
)


@settings(deadline=None, max_examples=120)
@given(kind=st.sampled_from(sorted(KINDS)), text=SCRIPTS)
def test_answers_in_any_script_come_back_from_the_mask(kind: str, text: str) -> None:
    conversation_encoder = kept_builder(kind)
    messages = (turn("user", None, "What is it?"), turn("assistant", text))
    try:
        row = conversation_encoder.encode_conversation(messages, [ONE], verify=True)
    except RecordError as error:
        # The prompt alone would be cut into other tokens than those that it was trained as.
        whole, prompt = (
            conversation_encoder.template.render(messages),
            conversation_encoder.template.render(messages[:1], prompt=True),
        )
        assert error.reason == "merged_boundary"  # noqa: PT017
        assert encoded(kind, whole)[: len(encoded(kind, prompt))] != encoded(kind, prompt)
        return
    (span,) = row.spans
    fed = conversation_encoder.encode_prompt(messages[:1], [ONE])
    assert row.ids[: span.start].tolist() == fed.ids.tolist()
    end = decoded(kind, row.ids[span.end - 1 : span.end])
    assert end.strip() == conversation_encoder.template.render(messages).strip()[-len(end.strip()) :]
    said = decoded(kind, row.ids[span.start : span.end - 1])
    wanted = unicodedata.normalize("NFC", text) if kind == "qwen3" else text
    if kind in LOSSLESS or kind == "qwen3":
        assert said.strip() == wanted.strip()


FRAGMENTS = [
    "<",
    "|",
    "im",
    "_",
    "start",
    "end",
    "|>",
    "<|im_start|>",
    "</s>",
    "<s>",
    "s>",
    "＜/s＞",
    "<eos>",
    " ",
    "a",
    IMAGE,
    "<image",
    "\n",
]


@settings(deadline=None, max_examples=120)
@given(kind=st.sampled_from(sorted(KINDS)), parts=st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6))
def test_nothing_that_a_user_writes_becomes_a_control_token(kind: str, parts: list[str]) -> None:
    conversation_encoder = kept_builder(kind)
    special = conversation_encoder.special_ids - {conversation_encoder.tokenizer.unk_token_id}

    def controls(text: str) -> list[int]:
        row = conversation_encoder.encode_conversation((turn("user", None, text), turn("assistant", SAID)), [ONE])
        return [token for token in row.ids.tolist() if token in special]

    try:
        found = controls("".join(parts))
    except RecordError as error:
        assert error.reason in ("special_token_in_text", "placeholder_in_text")  # noqa: PT017
        return
    assert found == controls("x")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_special_token_is_refused_in_every_text(kind: str) -> None:
    conversation_encoder = builder_of(kind)
    for token in tokenizer_of(kind).added_tokens_decoder.values():
        if token.special:
            reason = "placeholder_in_text" if token.content == IMAGE else "special_token_in_text"
            asked = f"What is {token.content} for?"
            assert refused(conversation_encoder, (turn("user", None, asked), turn("assistant", SAID)), [ONE]) == reason
            assert refused(conversation_encoder, (turn("user", None), turn("assistant", asked)), [ONE]) == reason
            with pytest.raises(RecordError) as caught:
                conversation_encoder.encode_prompt((turn("user", None, asked),), [ONE])
            assert caught.value.reason == reason


# Images -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_images_take_their_slots_where_they_stand(kind: str) -> None:
    messages = (
        turn("user", "Left ", None, " right ", None),
        turn("assistant", SAID),
        turn("user", None, "Where?"),
        turn("assistant", MORE),
    )
    conversation_encoder = builder_of(kind)
    row = conversation_encoder.encode_conversation(messages, [ONE] * 3, verify=True)
    assert row.ids.tolist() == expanded(kind, conversation_encoder.template.render(messages))
    marker = tokenizer_of(kind).convert_tokens_to_ids(IMAGE)
    assert row.slots.tolist() == np.flatnonzero(row.ids == marker).tolist()
    assert len(row.slots) == 12
    assert spoken(kind, row) == [WRITTEN[kind][1].strip(), WRITTEN[kind][3].strip()]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_tiles_bring_their_tokens_and_move_the_mask(kind: str) -> None:
    conversation_encoder = builder_of(kind, tiling=SPLIT_TILING)
    layouts = [SPLIT_TILING.layout(30, 20, (2, 2)), SPLIT_TILING.layout(5, 5, (2, 2))]
    messages = (
        turn("user", None, "What runs?"),
        turn("assistant", SAID),
        turn("user", "And here? ", None),
        turn("assistant", MORE),
    )
    row = conversation_encoder.encode_conversation(messages, layouts, verify=True)
    before, between, after = conversation_encoder.template.render(messages).split(IMAGE)
    text = before + layouts[0].text + between + layouts[1].text + after
    assert row.ids.tolist() == expanded(kind, text)
    assert len(row.slots) == layouts[0].num_tokens + layouts[1].num_tokens
    assert spoken(kind, row) == [WRITTEN[kind][1].strip(), WRITTEN[kind][3].strip()]


# What cannot be trained on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_images_and_places_must_agree(kind: str) -> None:
    conversation_encoder = builder_of(kind)
    assert refused(conversation_encoder, TWO_TURNS, []) == "placeholder_count"
    assert refused(conversation_encoder, TWO_TURNS, [ONE, ONE]) == "placeholder_count"
    for layouts in ([], [ONE, ONE]):
        with pytest.raises(RecordError) as caught:
            conversation_encoder.encode_prompt(TWO_TURNS[:1], layouts)
        assert caught.value.reason == "placeholder_count"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_conversation_without_an_answer_has_nothing_to_learn(kind: str) -> None:
    assert refused(builder_of(kind), (turn("user", None, "What runs?"),), [ONE]) == "no_supervised_token"
    assert refused(builder_of(kind, rules(supervise="with_header")), (turn("user", None, "?"),), [ONE]) == "no_supervised_token"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_rows_beyond_the_limit_are_skipped_or_cut(kind: str) -> None:
    whole = builder_of(kind).encode_conversation(TWO_TURNS, [ONE])
    size, begin = len(whole.ids), whole.spans[0].start
    assert builder_of(kind, rules(max_tokens=size)).encode_conversation(TWO_TURNS, [ONE]).ids.tolist() == whole.ids.tolist()
    assert refused(builder_of(kind, rules(max_tokens=size - 1)), TWO_TURNS, [ONE]) == "too_long"
    cut = builder_of(kind, rules(max_tokens=begin + 2, too_long="truncate")).encode_conversation(TWO_TURNS, [ONE])
    assert cut.ids.tolist() == whole.ids[: begin + 2].tolist()
    assert [(span.start, span.end, span.turn) for span in cut.spans] == [(begin, begin + 2, 1)]
    no_answer = builder_of(kind, rules(max_tokens=begin, too_long="truncate"))
    assert refused(no_answer, TWO_TURNS, [ONE]) == "no_supervised_token"
    no_picture = builder_of(kind, rules(max_tokens=int(whole.slots[-1]), too_long="truncate"))
    assert refused(no_picture, TWO_TURNS, [ONE]) == "too_long"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("a", images=("a",), captions=("x",)), "image_info_missing"),
        (Record("a", images=("a",), image_info=(ImageInfo("0", 4, 4),), captions=("x",)), "image_in_text_model"),
    ],
)
def test_images_that_no_layout_can_be_made_of_are_a_records_fault(record: Record, reason: str) -> None:
    conversation_encoder = builder_of("tinyvlm", rules(tiling=None if reason == "image_in_text_model" else WHOLE))
    with pytest.raises(RecordError) as caught:
        conversation_encoder.layouts(record)
    assert caught.value.reason == reason


# Records ------------------------------------------------------------------------------------------------------------------------

PICTURES = {"images": ("a.png", "b.png"), "image_info": (ImageInfo("0", 4, 4), ImageInfo("1", 8, 4))}


def test_captions_are_answers_to_the_recipes_prompt() -> None:
    record = Record("r", captions=("one", "two"), **PICTURES)
    conversation_encoder = builder_of("tinyvlm", rules(prompt="Describe it."))
    asked = turn("user", None, None, "Describe it.")
    assert conversation_encoder.conversations(record) == [(asked, turn("assistant", "one")), (asked, turn("assistant", "two"))]
    assert conversation_encoder.prompt_messages(record) == (asked,)
    assert len(conversation_encoder.layouts(record)) == 2
    first = builder_of("tinyvlm", rules(captions="first"))
    assert first.conversations(record) == [(turn("user", None, None), turn("assistant", "one"))]
    text = Record("t", captions=("alone",))
    assert first.conversations(text) == [(turn("assistant", "alone"),)]


def test_conversations_are_themselves_and_asked_up_to_the_last_answer() -> None:
    record = Record("r", images=("a.png",), image_info=PICTURES["image_info"][:1], messages=TWO_TURNS)
    conversation_encoder = builder_of("tinyvlm", rules(prompt="never used"))
    assert conversation_encoder.conversations(record) == [TWO_TURNS]
    assert conversation_encoder.prompt_messages(record) == TWO_TURNS[:3]
    assert conversation_encoder.prompt_messages(Record("q", messages=TWO_TURNS[:1])) == TWO_TURNS[:1]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_without_images_the_text_stays(kind: str) -> None:
    record = Record("r", images=("a.png",), image_info=PICTURES["image_info"][:1], messages=TWO_TURNS)
    conversation_encoder = builder_of(kind, rules(drop_images=True, prompt="Look."))
    (messages,) = conversation_encoder.conversations(record)
    assert conversation_encoder.layouts(record) == []
    row = conversation_encoder.encode_conversation(messages, [], verify=True)
    assert row.ids.tolist() == expanded(kind, "".join(WRITTEN[kind]).replace(IMAGE, ""))
    assert spoken(kind, row) == [WRITTEN[kind][1].strip(), WRITTEN[kind][3].strip()]
    captions = Record("c", captions=("x",), **PICTURES)
    assert conversation_encoder.prompt_messages(captions) == (turn("user", "Look."),)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_captions_of_a_image_share_what_they_have_in_common(kind: str) -> None:
    conversation_encoder = builder_of(kind)
    texts = ["A brown dog runs.", "A brown ball.", "Two children."]
    rows = [
        conversation_encoder.encode_conversation((turn("user", None, "?"), turn("assistant", text)), [ONE], verify=True)
        for text in texts
    ]
    prefix = shared_prefix(rows)
    assert all(row.ids[:prefix].tolist() == rows[0].ids[:prefix].tolist() for row in rows)
    assert prefix == rows[0].spans[0].start > rows[0].slots[-1]
    # Unequal before the last image: nothing can be shared. Unequal questions: what stands before them can.
    others = [
        conversation_encoder.encode_conversation((turn("user", text, None), turn("assistant", SAID)), [ONE])
        for text in ("Left", "Right")
    ]
    assert shared_prefix(others) == 0
    asked = [
        conversation_encoder.encode_conversation((turn("user", None, text), turn("assistant", SAID)), [ONE])
        for text in ("Who?", "What?")
    ]
    assert asked[0].slots[-1] < shared_prefix(asked) < asked[0].spans[0].start


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_prompt_without_any_token_becomes_the_start_token_and_others_stay(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    plain = ConversationEncoder(tokenizer, Template(tokenizer, "plain"), rules())
    empty = plain.encode_prompt([Message("user", ())], [])
    assert len(empty.ids) == 1
    assert int(empty.ids[0]) in (tokenizer.bos_token_id, tokenizer.eos_token_id, plain.pad_id)
    row = EncodedConversation(np.array([7, 8, 9]), (Span(0, 2, 1),), np.array([2]), "r")
    later = plain.with_start(row)
    assert (later.ids.tolist()[1:], later.spans, later.slots.tolist(), later.record_id) == ([7, 8, 9], (Span(1, 3, 1),), [3], "r")
