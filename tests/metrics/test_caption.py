"""BLEU, ROUGE-L and CIDEr-D against pycocoevalcap's values, and against plain formulas in float64."""

import json
import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.metrics.caption import bleu, cider_d, rouge_l, score_captions
from sightline.metrics.ptb import tokenize_all
from sightline.metrics.statistics import bootstrap, mean_of

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "caption_scores.json").read_text("utf-8"))
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
SCORES = score_captions([item["candidate"] for item in GOLDEN["items"]], [item["references"] for item in GOLDEN["items"]])

sentences = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "on", "the", "red", "mat"]), max_size=9)
groups = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=4)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_official_scorers(name: str) -> None:
    # 1e-12 lets through the order of summation only; a changed constant (1e-9 in BLEU) shows.
    assert SCORES[name].value == pytest.approx(GOLDEN["corpus"][name], rel=1e-12, abs=1e-15)
    assert SCORES[name].items == pytest.approx([item[name] for item in GOLDEN["items"]], rel=1e-12, abs=1e-15)


def test_a_score_holds_its_interval_and_counts_its_items() -> None:
    for score in SCORES.values():
        assert score.low <= score.value <= score.high
        assert score.n == len(GOLDEN["items"])


def grams_of(words: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def plain_cider(items: list[tuple[list[str], list[list[str]]]], corpus: list[list[list[str]]]) -> list[float]:
    """CIDEr-D written out from its formula."""
    documents: Counter[tuple[str, ...]] = Counter()
    for group in corpus:
        documents.update({gram for words in group for order in range(1, 5) for gram in grams_of(words, order)})

    def weights(words: list[str], order: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count * (math.log(len(corpus)) - math.log(max(1, documents[gram])))
            for gram, count in grams_of(words, order).items()
        }

    values = []
    for candidate, references in items:
        total = 0.0
        for reference in references:
            distance = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
            for order in range(1, 5):
                mine, theirs = weights(candidate, order), weights(reference, order)
                norm = math.sqrt(sum(w * w for w in mine.values())) * math.sqrt(sum(w * w for w in theirs.values()))
                shared = sum(min(mine.get(gram, 0.0), weight) * weight for gram, weight in theirs.items())
                total += shared / norm * math.exp(-(distance**2) / 72) if norm else 0.0
        values.append(10 * total / 4 / len(references))
    return values


@settings(deadline=None)
@given(groups)
def test_cider_equals_its_formula(items: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [list(part) for part in zip(*items, strict=True)]
    assert cider_d(candidates, references) == pytest.approx(plain_cider(items, references), rel=1e-10, abs=1e-12)


@settings(deadline=None)
@given(groups, st.lists(st.lists(sentences, min_size=1, max_size=3), min_size=1, max_size=5))
def test_cider_with_a_fixed_corpus_counts_documents_there(
    items: list[tuple[list[str], list[list[str]]]], corpus: list[list[list[str]]]
) -> None:
    candidates, references = [list(part) for part in zip(*items, strict=True)]
    expected = plain_cider(items, corpus)
    assert cider_d(candidates, references, corpus) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def plain_common(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@settings(deadline=None)
@given(groups)
def test_rouge_takes_the_best_precision_and_the_best_recall(items: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [list(part) for part in zip(*items, strict=True)]
    for value, candidate, group in zip(rouge_l(candidates, references), candidates, references, strict=True):
        mine, theirs = candidate or [""], [reference or [""] for reference in group]
        precision = max(plain_common(mine, other) / len(mine) for other in theirs)
        recall = max(plain_common(mine, other) / len(other) for other in theirs)
        expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0
        assert value == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(groups)
def test_bleu_counts_are_clipped_at_the_best_reference(items: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [list(part) for part in zip(*items, strict=True)]
    counts = bleu(candidates, references)
    for index, (candidate, group) in enumerate(items):
        for order in range(1, 5):
            limits = [grams_of(reference, order) for reference in group]
            found = grams_of(candidate, order)
            clipped = sum(min(count, max(limit[gram] for limit in limits)) for gram, count in found.items())
            assert counts.matches_NO[index, order - 1] == clipped
            assert counts.guesses_NO[index, order - 1] == sum(found.values())
        lengths = sorted((len(reference) for reference in group), key=lambda length: (abs(length - len(candidate)), length))
        assert counts.reference_length_N[index] == lengths[0]


def test_corpus_bleu_of_known_counts() -> None:
    # 6 of 7 words, 4 of 5 pairs over two captions; 7 words against references of 8: exp(1 - 8/7).
    counts = bleu(tokenize_all(["a red dog runs", "the cat sat"]), [[["a", "red", "dog", "ran"]], [["the", "cat", "sat", "down"]]])
    everything = np.ones((1, 2), dtype=int)
    assert counts.corpus(1)(everything)[0] == pytest.approx(6 / 7 * math.exp(1 - 8 / 7), rel=1e-8)
    assert counts.corpus(2)(everything)[0] == pytest.approx(math.sqrt(6 / 7 * 4 / 5) * math.exp(1 - 8 / 7), rel=1e-8)


def test_intervals_of_bleu_recompute_the_corpus_value() -> None:
    candidates = ["a dog runs on the beach"] * 3 + ["nothing fits here at all"] * 3
    references = [["a dog runs on the beach"]] * 6
    score = score_captions(candidates, references, ["bleu"], resamples=400, seed=3)["bleu_4"]
    # every resample is some share of good captions; with none of them the value is almost 0, with all of them 1
    counts = bleu(tokenize_all(candidates), [tokenize_all(group) for group in references])
    assert (score.low, score.high) == (
        (interval := bootstrap(counts.corpus(4), 6, resamples=400, seed=3)).low,
        interval.high,
    )
    assert score.low < 0.35 < score.value < 0.75 < score.high


def test_cider_intervals_keep_the_document_frequencies_of_the_whole_set() -> None:
    score = SCORES["cider_d"]
    interval = bootstrap(mean_of(score.items), score.n)
    assert (score.low, score.high) == (interval.low, interval.high)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """The library's messages, also after a test of the command line has turned propagation off."""
    monkeypatch.setattr(logging.getLogger("sightline"), "propagate", True)
    return caplog


def test_one_image_gives_a_cider_of_zero_and_says_so(log: pytest.LogCaptureFixture) -> None:
    with log.at_level(logging.WARNING, "sightline"):
        score = score_captions(["a dog"], [["a dog", "the dog"]], ["cider"])["cider_d"]
    assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)
    assert "every value is 0" in log.text
    assert "--idf" in log.text


def test_a_fixed_corpus_gives_one_image_a_value(log: pytest.LogCaptureFixture) -> None:
    corpus = [["a dog runs"], ["a cat sits"]] + [[f"number {number}"] for number in range(120)]
    with log.at_level(logging.WARNING, "sightline"):
        score = score_captions(["a dog runs"], [["a dog runs"]], ["cider"], frequencies=corpus)["cider_d"]
    assert score.value == pytest.approx(7.5)  # the caption is its reference; it has no 4-grams
    assert not log.text


def test_a_token_with_a_space_inside_is_two_words_for_ngrams() -> None:
    assert bleu(tokenize_all(["3 1/2"]), [[["3", "1/2"]]]).matches_NO.tolist() == [[2, 1, 0, 0]]


@pytest.mark.parametrize(
    ("candidates", "references", "metrics"),
    [([], [], ["bleu"]), (["a"], [], ["bleu"]), (["a"], [[]], ["bleu"]), (["a"], [["a"]], ["meteor"])],
)
def test_unusable_input_is_refused(candidates: list[str], references: list[list[str]], metrics: list[str]) -> None:
    with pytest.raises(ValueError, match=r"each item needs both|known are bleu"):
        score_captions(candidates, references, metrics)
