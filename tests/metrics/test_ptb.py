"""The tokenizer against the official program's output on sentences of our own."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.metrics import tokenize, tokenize_all

GOLDEN = [
    json.loads(line) for line in (Path(__file__).parents[1] / "golden" / "ptb_tokens.jsonl").read_text("utf-8").split("\n") if line
]


def test_every_golden_sentence_has_the_tokens_of_the_official_program() -> None:
    found = tokenize_all([line["text"] for line in GOLDEN])
    differences = [
        (line["text"], line["tokens"], tokens) for line, tokens in zip(GOLDEN, found, strict=True) if tokens != line["tokens"]
    ]
    assert len(GOLDEN) > 100
    assert not differences


def test_words_with_an_apostrophe_are_whole_in_any_case() -> None:
    # Output of the official program for this line.
    line = "A Nor'easter hit CAP'N Crunch near C'EST la vie and NAT'L li'l EV'RY E'ER C'MON CONT'D. S'MORES s'Mores"
    assert tokenize(line) == line.lower().split()


def test_a_thin_space_after_a_web_address_is_no_part_of_a_line_that_ends_there() -> None:
    # pycocoevalcap strips each line of the official program, which takes U+2009 into the token.
    assert tokenize_all(["see http://a.b/c\u2009", "see http://a.b/c\u2009 now", "www.a.com/x\u2009", "hi\u2009"]) == [
        ["see", "http://a.b/c"],
        ["see", "http://a.b/c\u2009", "now"],
        ["www.a.com/x"],
        ["hi"],
    ]


def test_punctuation_goes_and_brackets_stay_as_words() -> None:
    assert tokenize('He said: "Stop!" (twice), - then left...') == ["he", "said", "stop", "-lrb-", "twice", "-rrb-", "then", "left"]


def test_a_single_letter_at_the_end_of_a_text_looks_at_the_next_text() -> None:
    # Output of the official program for a file of these lines.
    assert tokenize_all(["plan B.", "The next", "vitamin C.", "the next"]) == [
        ["plan", "b"],
        ["the", "next"],
        ["vitamin", "c."],
        ["the", "next"],
    ]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("Acme Inc.", ["acme", "inc."]), ("plan B.", ["plan", "b."]), ("a :)", ["a", "-rrb-"]), ("it's '05", ["it", "'s", "05"])],
)
def test_the_end_of_the_last_text_is_that_of_a_file(text: str, tokens: list[str]) -> None:
    # Output of the official program for a file that ends without a line feed: ":)" needs something behind it to be a smiley.
    assert tokenize(text) == tokens


def test_the_text_of_one_item_never_reaches_into_the_next() -> None:
    # The official program takes the attribute of a tag, over the end of the line, as one token and loses a caption.
    assert tokenize_all(['a <b c="', '"> d']) == [["a", "<", "b", "c", "="], [">", "d"]]
    assert tokenize_all(["call 650 555", "0123 now"]) == [["call", "650", "555"], ["0123", "now"]]


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\u2028", "\u2029"])
def test_a_line_separator_inside_a_text_is_a_space(separator: str) -> None:
    assert tokenize_all([f"a dog{separator}runs", "next"]) == [["a", "dog", "runs"], ["next"]]


def test_characters_beyond_the_basic_plane_are_dropped_alone_and_kept_in_addresses() -> None:
    assert tokenize("a 😀 b a😀b") == ["a", "b", "a", "b"]
    assert tokenize("http://example.org/😀/x now") == ["http://example.org/😀/x", "now"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_any_texts_give_one_list_of_printable_tokens_each(texts: list[str]) -> None:
    tokens = tokenize_all(texts)
    assert len(tokens) == len(texts)
    for token in (token for line in tokens for token in line):
        assert token
        assert not set(token) & set(" \t\n\r")
        assert token == token.lower()


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abAB.,'\"-–’ <>/@#$%&;:!?()19éNtsS", max_size=40), min_size=1, max_size=4))
def test_strings_of_punctuation_keep_the_number_of_texts(texts: list[str]) -> None:
    assert len(tokenize_all(texts)) == len(texts)


@pytest.mark.parametrize(
    "text",
    ["a," * 5000, "<a" + " " * 5000, "<a " + "b= " * 2000, "a@" * 5000, "'" * 5000, "a.b!" * 3000, "1-" * 5000, "~." * 5000],
)
def test_strange_long_texts_do_not_take_forever(text: str) -> None:
    begin = time.monotonic()
    tokenize(text)
    assert time.monotonic() - begin < 5  # measured below 0.5 s; a rule that backtracks takes minutes
