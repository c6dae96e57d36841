"""BLEU, ROUGE-L and CIDEr-D of tokenised captions, on the scale and with the constants of pycocoevalcap.

Each function takes, per item, the tokens of one candidate and of its references (`sightline.metrics.ptb`) and returns values per
item; `score_captions` goes from texts to scores with intervals. METEOR is missing because its paraphrase tables exist for Java
only. Unusual definitions (ROUGE-L takes the best precision and the best recall over different references) are those of the official
scorers, so that values are comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sightline.metrics.ngrams import NGrams, Words, as_words, count_ngrams
from sightline.metrics.ptb import tokenize_all
from sightline.metrics.scores import score_of
from sightline.metrics.statistics import Statistic
from sightline.runtime.logs import logger
from sightline.types import Score

SCORER = "captions 1"
MAX_ORDER = 4
FEW_IMAGES = 100  # with fewer, document frequencies are too coarse to compare CIDEr-D with published values
CAPTION_METRICS = ("bleu", "cider", "rouge")

_TINY, _SMALL = 1e-15, 1e-9  # keep BLEU finite when a count is 0; they affect the value, so they equal the official ones
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0
_CIDER_SCALE = 10.0


def score_captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = CAPTION_METRICS,
    *,
    frequencies: Sequence[Sequence[str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """Scores texts against their references.

    Args:
        candidates: one text per item.
        references: for each item its references, at least one.
        metrics: any of "bleu" (four scores), "rouge" and "cider".
        frequencies: references of a fixed corpus from which CIDEr-D takes its document frequencies, one list per image;
            `references` by default.
        resamples: bootstrap resamples of the items for the 95 % intervals.
        seed: seed of the resampling.

    Returns:
        Scores by name: `bleu_1` to `bleu_4`, `rouge_l`, `cider_d`. BLEU's value and interval are corpus values (counts are summed
        before the ratio); its items are per caption.

    Raises:
        ValueError: the lengths differ, there is no item, an item has no reference, or a metric is unknown.
    """
    unknown = sorted(set(metrics) - set(CAPTION_METRICS))
    if unknown:
        raise ValueError(f"unknown caption metric {unknown[0]!r}; known are {', '.join(CAPTION_METRICS)}")
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} lists of references; each item needs both")
    candidate_tokens = tokenize_all(candidates)
    reference_tokens = tokenize_groups(references)
    unparsed = sum(not tokens for tokens in candidate_tokens) / len(candidates)
    scores: dict[str, Score] = {}
    if "bleu" in metrics:
        statistics = bleu(candidate_tokens, reference_tokens)
        items = statistics.per_item()
        for order in range(MAX_ORDER):
            name, corpus = f"bleu_{order + 1}", statistics.corpus(order + 1)
            scores[name] = score_of(name, items[:, order].tolist(), SCORER, unparsed, corpus, resamples, seed)
    if "rouge" in metrics:
        values = rouge_l(candidate_tokens, reference_tokens)
        scores["rouge_l"] = score_of("rouge_l", values.tolist(), SCORER, unparsed, resamples=resamples, seed=seed)
    if "cider" in metrics:
        values = cider_d(candidate_tokens, reference_tokens, None if frequencies is None else tokenize_groups(frequencies))
        scores["cider_d"] = score_of("cider_d", values.tolist(), SCORER, unparsed, resamples=resamples, seed=seed)
    return scores


def tokenize_groups(groups: Sequence[Sequence[str]]) -> list[list[list[str]]]:
    """Tokenises lists of captions, one list per image, in one call."""
    tokens = iter(tokenize_all([text for group in groups for text in group]))
    return [[next(tokens) for _ in group] for group in groups]


# BLEU -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BleuStatistics:
    """Counts that BLEU is computed from, per item; sums over items give the corpus value.

    Attributes:
        matches_NO: n-grams of the candidate that also occur in a reference, clipped at the largest count in one reference.
        guesses_NO: n-grams of the candidate.
        length_N: number of words of the candidate.
        reference_length_N: number of words of the reference with the closest length; the shorter of two equally close ones.
    """

    matches_NO: Int[np.ndarray, "N O"]
    guesses_NO: Int[np.ndarray, "N O"]
    length_N: Int[np.ndarray, " N"]
    reference_length_N: Int[np.ndarray, " N"]

    def per_item(self) -> Float[np.ndarray, "N O"]:
        """Computes BLEU-1 to BLEU-4 of each item by itself."""
        return _bleu(self.matches_NO, self.guesses_NO, self.length_N, self.reference_length_N)

    def corpus(self, order: int) -> Statistic:
        """Returns corpus BLEU of an order as a statistic of the items."""
        terms = [*self.matches_NO.T, *self.guesses_NO.T, self.length_N, self.reference_length_N]
        num_orders = self.matches_NO.shape[1]

        def of_sums(sums_RK: Float[np.ndarray, "R K"]) -> Float[np.ndarray, " R"]:
            matches, guesses = sums_RK[:, :num_orders], sums_RK[:, num_orders : 2 * num_orders]
            return _bleu(matches, guesses, sums_RK[:, -2], sums_RK[:, -1])[:, order - 1]

        return Statistic(np.array(terms, dtype=float), of_sums)


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> BleuStatistics:
    """Counts n-grams for BLEU (Papineni et al. 2002) with the closest reference length."""
    groups = _Groups(candidates, references)
    num_items = len(candidates)
    matches = np.zeros((num_items, MAX_ORDER), dtype=np.int64)
    for order, grams in enumerate(count_ngrams(groups.sentences, MAX_ORDER)):
        mine, theirs = groups.split(grams)
        keys = groups.item[theirs.sentence] * max(grams.num_grams, 1) + theirs.gram
        largest_keys, where = np.unique(keys, return_inverse=True)
        largest = np.zeros(len(largest_keys), dtype=np.int64)
        np.maximum.at(largest, where, theirs.count)
        found, place = _find(largest_keys, mine.sentence * max(grams.num_grams, 1) + mine.gram)
        clipped = np.minimum(mine.count[found], largest[place])
        matches[:, order] = np.bincount(mine.sentence[found], clipped, num_items).astype(np.int64)
    lengths = groups.lengths[:num_items]
    closest = [
        min((abs(int(length) - int(mine)), int(length)) for length in group)[1]
        for mine, group in zip(lengths, groups.reference_lengths(), strict=True)
    ]
    guesses = np.maximum(lengths[:, None] - np.arange(MAX_ORDER), 0)
    return BleuStatistics(matches, guesses, lengths, np.array(closest, dtype=np.int64))


def _bleu(
    matches: Float[np.ndarray, "N O"],
    guesses: Float[np.ndarray, "N O"],
    length: Float[np.ndarray, " N"],
    reference_length: Float[np.ndarray, " N"],
) -> Float[np.ndarray, "N O"]:
    """Computes `exp(min(0, 1 - r/c)) * (prod_k p_k)^(1/n)` for n = 1 to 4."""
    precisions = (matches + _TINY) / (guesses + _SMALL)
    value = np.cumprod(precisions, axis=1) ** (1 / np.arange(1, matches.shape[1] + 1))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    return value * np.exp(np.minimum(0, 1 - 1 / ratio))[:, None]


# ROUGE-L --------------------------------------------------------------------------------------------------------------------


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Float[np.ndarray, " N"]:
    """Computes the F-measure of the longest common subsequence (Lin 2004), beta 1.2.

    `F = (1 + b^2) P R / (R + b^2 P)` with P the largest `lcs / |candidate|` and R the largest `lcs / |reference|` over the
    references, each maximum taken separately. An empty text counts as one empty token.
    """
    values = np.zeros(len(candidates))
    for index, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
        mine = list(candidate) or [""]
        places: dict[str, int] = {}
        for place, token in enumerate(mine):
            places[token] = places.get(token, 0) | 1 << place
        precision = recall = 0.0
        for reference in group:
            theirs = list(reference) or [""]
            common = _common_length(places, len(mine), theirs)
            precision, recall = max(precision, common / len(mine)), max(recall, common / len(theirs))
        if precision and recall:
            values[index] = (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)
    return values


def _common_length(places: dict[str, int], length: int, other: Words) -> int:
    """Computes the length of the longest common subsequence, with a row of the table as the bits of an integer."""
    everything = (1 << length) - 1
    row = everything
    for token in other:
        matching = row & places.get(token, 0)
        row = ((row + matching) | (row - matching)) & everything
    return length - row.bit_count()


# CIDEr-D --------------------------------------------------------------------------------------------------------------------


def cider_d(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    frequencies: Sequence[Sequence[Words]] | None = None,
) -> Float[np.ndarray, " N"]:
    """Computes CIDEr-D (Vedantam et al. 2015), 0 to 10 per item.

    `g(w) = count(w) (log M - log max(1, df(w)))` with M images and df(w) of them having the n-gram w in a reference; per n
    `sum_w min(g_c, g_r) g_r / (|g_c| |g_r|) * exp(-(l_c - l_r)^2 / (2 sigma^2))`, mean over n = 1..4 and over references, times
    10; sigma 6, l the number of words.

    Args:
        candidates: tokens of one candidate per image.
        references: tokens of the references of each image.
        frequencies: tokens of the references of another set of images, from which document frequencies and M are counted.
    """
    groups = _Groups(candidates, references, frequencies)
    _warn_of_few(groups.num_documents, len(candidates), frequencies is not None)
    num_items, num_sentences = len(candidates), len(groups.lengths)
    reference_sentences = np.arange(num_items, groups.end)
    total = np.zeros(num_sentences)
    for grams in count_ngrams(groups.sentences, MAX_ORDER):
        mine, theirs = groups.split(grams)
        frequency = groups.document_frequency(grams)
        weight = np.log(groups.num_documents) - np.log(np.maximum(1.0, frequency))
        mine_tfidf, their_tfidf = mine.count * weight[mine.gram], theirs.count * weight[theirs.gram]
        norm = np.sqrt(
            np.bincount(mine.sentence, mine_tfidf**2, num_sentences) + np.bincount(theirs.sentence, their_tfidf**2, num_sentences)
        )
        found, place = _find(
            mine.sentence * max(grams.num_grams, 1) + mine.gram,
            groups.item[theirs.sentence] * max(grams.num_grams, 1) + theirs.gram,
        )
        shared = np.minimum(mine_tfidf[place], their_tfidf[found]) * their_tfidf[found]
        similarity = np.bincount(theirs.sentence[found], shared, num_sentences)[reference_sentences]
        norms = norm[groups.item[reference_sentences]] * norm[reference_sentences]
        total[reference_sentences] += np.divide(similarity, norms, out=np.zeros_like(norms), where=norms > 0)
    item = groups.item[reference_sentences]
    distance = (groups.lengths[item] - groups.lengths[reference_sentences]).astype(float)
    per_reference = total[reference_sentences] / MAX_ORDER * np.exp(-(distance**2) / (2 * _CIDER_SIGMA**2))
    return _CIDER_SCALE * np.bincount(item, per_reference, num_items) / np.bincount(item, minlength=num_items)


class PairwiseCider:
    """CIDEr-D of the captions of a corpus with each other, with document frequencies of that corpus.

    Args:
        groups: tokens of the captions of each image.
    """

    def __init__(self, groups: Sequence[Sequence[Words]]) -> None:
        sentences = [as_words(sentence) for group in groups for sentence in group]
        image = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        self.lengths = np.array([len(words) for words in sentences], dtype=np.int64)
        self._orders: list[tuple[NGrams, Float[np.ndarray, " C"], Float[np.ndarray, " N"]]] = []
        for grams in count_ngrams(sentences, MAX_ORDER):
            frequency = _document_frequency(grams, image)
            tfidf = grams.count * (np.log(len(groups)) - np.log(np.maximum(1.0, frequency)))[grams.gram]
            norm = np.sqrt(np.bincount(grams.sentence, tfidf**2, len(sentences)))
            self._orders.append((grams, tfidf, norm))

    def among(self, chosen: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
        """Computes CIDEr-D of each chosen caption (row) with each chosen one as its only reference (column).

        Args:
            chosen: places of captions in the corpus, counted over all images.
        """
        total = np.zeros((len(chosen), len(chosen)))
        for grams, tfidf, norm in self._orders:
            bounds = np.searchsorted(grams.sentence, [chosen, chosen + 1]).T
            columns, place = np.unique(np.concatenate([grams.gram[slice(*own)] for own in bounds]), return_inverse=True)
            table = np.zeros((len(chosen), len(columns)))
            table[np.repeat(np.arange(len(chosen)), bounds[:, 1] - bounds[:, 0]), place] = np.concatenate(
                [tfidf[slice(*own)] for own in bounds]
            )
            norms = np.outer(norm[chosen], norm[chosen])
            for row, mine in enumerate(table):
                used = np.flatnonzero(mine)
                shared = (np.minimum(mine[used], table[:, used]) * table[:, used]).sum(axis=1)
                total[row] += np.divide(shared, norms[row], out=np.zeros_like(shared), where=norms[row] > 0)
        distance = (self.lengths[chosen, None] - self.lengths[None, chosen]).astype(float)
        return _CIDER_SCALE / MAX_ORDER * total * np.exp(-(distance**2) / (2 * _CIDER_SIGMA**2))


def _document_frequency(grams: NGrams, image: Int[np.ndarray, " N"]) -> Float[np.ndarray, " G"]:
    """Counts in how many images' sentences each n-gram occurs."""
    width = max(grams.num_grams, 1)
    keys = np.unique(image[grams.sentence] * width + grams.gram)
    return np.bincount(keys % width, minlength=grams.num_grams).astype(float)


def _warn_of_few(num_documents: int, num_items: int, is_fixed: bool) -> None:
    if num_documents >= FEW_IMAGES:
        return
    where = f"a corpus of {num_documents}" if is_fixed else f"only {num_items}"
    effect = "every value is 0" if num_documents == 1 else "values do not compare with those of a larger set"
    logger.warning(
        "CIDEr-D takes its document frequencies from %s image%s: %s. `sightline score --idf FILE` takes them from a larger set.",
        where,
        "" if num_documents == 1 else "s",
        effect,
    )


class _Groups:
    """Candidates, their references, and the corpus of document frequencies as one list of sentences, so that their n-grams share
    one numbering."""

    def __init__(
        self,
        candidates: Sequence[Words],
        references: Sequence[Sequence[Words]],
        frequencies: Sequence[Sequence[Words]] | None = None,
    ) -> None:
        self.num_items = len(candidates)
        self.sizes = np.array([len(group) for group in references], dtype=np.int64)
        flat = [sentence for group in references for sentence in group]
        self.sentences = [as_words(sentence) for sentence in [*candidates, *flat]]
        self.end = len(self.sentences)
        # item of each sentence: candidates count up, references repeat their item's number
        item = [np.arange(self.num_items), np.repeat(np.arange(self.num_items), self.sizes)]
        self.num_documents = self.num_items
        self.is_fixed = frequencies is not None
        if frequencies is not None:
            self.num_documents = len(frequencies)
            self.sentences += [as_words(sentence) for group in frequencies for sentence in group]
            item.append(np.repeat(np.arange(len(frequencies)), [len(group) for group in frequencies]))
        self.item = np.concatenate(item)
        self.lengths = np.array([len(words) for words in self.sentences], dtype=np.int64)

    def reference_lengths(self) -> list[Int[np.ndarray, " R"]]:
        """Returns the number of words of each item's references."""
        return np.split(self.lengths[self.num_items : self.end], np.cumsum(self.sizes)[:-1])

    def split(self, grams: NGrams) -> tuple[NGrams, NGrams]:
        """Separates the n-grams of the candidates from those of their references."""
        return _part(grams, 0, self.num_items), _part(grams, self.num_items, self.end)

    def document_frequency(self, grams: NGrams) -> Float[np.ndarray, " G"]:
        """Counts in how many images' references each n-gram occurs."""
        documents = _part(grams, self.end, len(self.sentences)) if self.is_fixed else _part(grams, self.num_items, self.end)
        return _document_frequency(documents, self.item)


def _part(grams: NGrams, first: int, end: int) -> NGrams:
    part = slice(*np.searchsorted(grams.sentence, (first, end)))
    return NGrams(grams.sentence[part], grams.gram[part], grams.count[part], grams.num_grams)


def _find(sorted_keys: Int[np.ndarray, " K"], wanted: Int[np.ndarray, " W"]) -> tuple[Int[np.ndarray, " F"], Int[np.ndarray, " F"]]:
    """Returns the indices of the wanted keys that exist, and their positions among the sorted ones."""
    place = np.searchsorted(sorted_keys, wanted)
    exists = place < len(sorted_keys)
    exists[exists] = sorted_keys[place[exists]] == wanted[exists]
    found = np.flatnonzero(exists)
    return found, place[found]
