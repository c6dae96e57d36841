"""Shows on which words CAL's weight falls, and how much weight is left for texts that belong to another image.

    python studies/cal_words.py RUN --data sets/flickr8k --split train --count 200 --low 0.28 --high 1.4

The word classes are lists that anyone can read and change: colours, counts, places, function words, the end of the text, and all
other words (objects, people, actions). Weights are those of the `clean` form under the given model, so the model should be trained
far enough to use the image.

`ratio` is the share of the weight over the share of the tokens (1 for plain cross-entropy), with a 95 % bootstrap interval over
records. `foreign_over_own` is the mean token weight of texts written for another image over that of the images' own texts: the
share of label noise that CAL keeps (1 for plain cross-entropy).
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch

from sightline.assembly.evaluate.gain import probe_gain
from sightline.assembly.evaluate.probe import ProbeRequest, open_probe
from sightline.evaluation.probes.gain import TextGain
from sightline.ops.pooling import pool_within_spans

COLOURS = "black white red blue green yellow orange brown pink purple grey gray blond blonde dark bright colorful tan golden"
COUNTS = "one two three four five six seven eight nine ten several many group couple few pair another other both"
PLACES = "left right above below top bottom under over up down front behind near inside outside middle next beside between through"
FUNCTION = (
    "a an the is are was were be being been am and or but of to in on at by for with from into onto as that this these those there "
    "his her their its it he she they them him who which while it's has have had not out off some each against across along around"
)
KINDS: dict[str, str] = {
    **dict.fromkeys(COLOURS.split(), "colours"),
    **dict.fromkeys(COUNTS.split(), "counts"),
    **dict.fromkeys(PLACES.split(), "places"),
    **dict.fromkeys(FUNCTION.split(), "function words"),
}
NAMES = ("colours", "counts", "places", "other words", "function words", "marks and the end of the text")


def kinds_of(text: TextGain) -> list[str]:
    """Returns for each token the class of the word that it is part of."""
    words: list[list[int]] = []
    for place, piece in enumerate(text.pieces):
        is_new = not words or piece[:1].isspace() or not piece.strip().isalpha()
        words = [*words, [place]] if is_new else [*words[:-1], [*words[-1], place]]
    kinds = [""] * len(text.pieces)
    for places in words:
        word = "".join(text.pieces[place] for place in places).strip().lower()
        kind = KINDS.get(word, "other words") if word.replace("'", "").isalpha() else NAMES[-1]
        for place in places:
            kinds[place] = kind
    return kinds


def weights_of(text: TextGain, low: float, high: float, window: int) -> np.ndarray:
    """Returns CAL's weight of each token of a text."""
    gain = torch.tensor(text.gains, dtype=torch.float64)
    clamped = torch.where(gain.isnan(), torch.ones_like(gain), gain.clamp(low, high))
    return pool_within_spans(clamped, torch.zeros(len(gain), dtype=torch.long), window).numpy()


def table(texts: Sequence[TextGain], low: float, high: float, window: int, resamples: int = 1000) -> dict[str, dict[str, object]]:
    """Computes for each word class its share of tokens and of weight, and the mean gain of its tokens."""
    records = sorted({text.record_id for text in texts})
    place = {record: number for number, record in enumerate(records)}
    tokens, weight, gain = (np.zeros((len(records), len(NAMES))) for _ in range(3))
    for text in texts:
        row = place[text.record_id]
        for kind, one, value in zip(kinds_of(text), weights_of(text, low, high, window), text.gains, strict=True):
            column = NAMES.index(kind)
            tokens[row, column] += 1
            weight[row, column] += one
            gain[row, column] += 0.0 if value != value else value
    draws = np.random.default_rng(0).integers(len(records), size=(resamples, len(records)))

    def shares(counts: np.ndarray) -> np.ndarray:
        return counts / counts.sum(-1, keepdims=True)

    ratio = shares(weight.sum(0)) / shares(tokens.sum(0))
    spread = np.percentile(shares(weight[draws].sum(1)) / shares(tokens[draws].sum(1)), (2.5, 97.5), axis=0)
    return {
        name: {
            "share_of_tokens": shares(tokens.sum(0))[k],
            "share_of_weight": shares(weight.sum(0))[k],
            "ratio": ratio[k],
            "low": spread[0, k],
            "high": spread[1, k],
            "mean_gain": gain.sum(0)[k] / max(tokens.sum(0)[k], 1),
        }
        for k, name in enumerate(NAMES)
    }


def main() -> None:
    """Prints the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", help="a feature store to use instead of images")
    parser.add_argument("--split", default="train")
    parser.add_argument("--count", type=int, default=200, help="records")
    parser.add_argument("--low", type=float, default=1.0)
    parser.add_argument("--high", type=float, default=5.0)
    parser.add_argument("--window", type=int, default=3)
    options = parser.parse_args()
    request = ProbeRequest(options.run, options.data, "gain", options.split, count=options.count, features=options.features)
    probe = open_probe(request)
    found = probe_gain(
        probe.model.bundle, probe.dataset, probe.records, probe.visual_loader, shown=0, bf16=probe.model.runtime.bf16
    )
    clamp = options.low, options.high, options.window
    own, foreign = (np.concatenate([weights_of(text, *clamp) for text in texts]).mean() for texts in (found.own, found.foreign))
    print(json.dumps({"clamp": clamp, "foreign_over_own": foreign / own, "kinds": table(found.own, *clamp)}, indent=1))


if __name__ == "__main__":
    main()
