"""Counts n-grams of many sentences at once, as flat numpy arrays.

Words become integers, an n-gram becomes an integer from its first n-1 words and its last word, and sorting does the counting.
30,000 captions take about half a second; a Counter per caption takes ten.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

Words = Sequence[str]


@dataclass(frozen=True, slots=True)
class NGrams:
    """The distinct n-grams of each sentence for one n, sorted by sentence and then by n-gram.

    Attributes:
        sentence: index of the sentence.
        gram: integer of the n-gram, below `num_grams`.
        count: number of occurrences in the sentence.
        num_grams: number of distinct n-grams over all sentences.
    """

    sentence: Int[np.ndarray, " C"]
    gram: Int[np.ndarray, " C"]
    count: Int[np.ndarray, " C"]
    num_grams: int


def count_ngrams(sentences: Sequence[Words], max_order: int = 4) -> Iterator[NGrams]:
    """Counts the n-grams of every sentence, for n = 1 to `max_order`."""
    identity: dict[str, int] = {}
    ids = np.array([identity.setdefault(word, len(identity)) for words in sentences for word in words], dtype=np.int64)
    lengths = np.array([len(words) for words in sentences], dtype=np.int64)
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    remaining = np.repeat(lengths, lengths) - (np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths))
    start, gram, num_grams = np.arange(len(ids)), ids, len(identity)
    for order in range(1, max_order + 1):
        if order > 1:
            fits = remaining[start] >= order
            start = start[fits]
            distinct, gram = np.unique(gram[fits] * len(identity) + ids[start + order - 1], return_inverse=True)
            num_grams = len(distinct)
        keys, count = np.unique(sentence[start] * max(num_grams, 1) + gram, return_counts=True)
        yield NGrams(keys // max(num_grams, 1), keys % max(num_grams, 1), count, num_grams)


def as_words(tokens: Words) -> list[str]:
    """Returns the words of a tokenised caption; a token with a no-break space ("3 1/2") is several words, as officially."""
    return " ".join(tokens).split()
