"""Canonical correlation analysis between image features and text vectors: the closed-form baseline of a dual encoder's heads.

    python -m studies.cca RUN --data SET --features STORE --out cca.npz
    sightline eval cca.npz --task retrieval --data SET --split val

RUN is a dual encoder with a frozen text encoder, whose text vectors are taken. Dimensions, regularisation and the weight of the
correlations (Gong et al. 2014) are chosen on images held out of the training split; the split that is written is not looked at.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float, Int

from sightline.assembly.config.schema import DataConfig
from sightline.assembly.evaluate.opened import open_model
from sightline.assembly.train.pairs import build_pair_corpus
from sightline.assembly.train.text_states import with_text_states
from sightline.data.batches.pairs import PairCorpus
from sightline.evaluation.tasks.retrieval import CAPTIONS
from sightline.metrics.retrieval import Gallery, recall_from_best
from sightline.runtime.keyed import keyed_generator

DIMENSIONS, RIDGES, POWERS = (64, 128, 256, 384), (1e-3, 1e-2, 1e-1, 1.0), (0.0, 1.0, 2.0, 4.0)
HELD_OUT = 500  # images of the training split on which the settings are chosen


@dataclass(frozen=True)
class Pairs:
    """Image features, one row per image; text vectors, one row per caption; and the image of each caption."""

    image_NE: Float[np.ndarray, "N E"]
    text_CU: Float[np.ndarray, "C U"]
    image_C: Int[np.ndarray, " C"]

    def of(self, images: Int[np.ndarray, " K"]) -> "Pairs":
        """Returns the pairs of some images."""
        new = np.full(len(self.image_NE), -1)
        new[images] = np.arange(len(images))
        kept = new[self.image_C] >= 0
        return Pairs(self.image_NE[images], self.text_CU[kept], new[self.image_C[kept]])


@dataclass(frozen=True)
class CCA:
    """Means and projections of both sides, columns by falling correlation."""

    image_mean: Float[np.ndarray, " E"]
    text_mean: Float[np.ndarray, " U"]
    image_EK: Float[np.ndarray, "E K"]
    text_UK: Float[np.ndarray, "U K"]
    correlation_K: Float[np.ndarray, " K"]

    @classmethod
    def fit(cls, pairs: Pairs, ridge: float) -> "CCA":
        """Solves it in closed form; the ridge is relative to the mean variance of each side."""
        image, text = pairs.image_NE[pairs.image_C], pairs.text_CU
        means = image.mean(0), text.mean(0)
        image, text = image - means[0], text - means[1]
        whiten = [_inverse_root(side.T @ side / len(side), ridge) for side in (image, text)]
        left, correlation, right = np.linalg.svd(whiten[0] @ (image.T @ text / len(image)) @ whiten[1], full_matrices=False)
        return cls(*means, whiten[0] @ left, whiten[1] @ right.T, correlation)

    def vectors(self, pairs: Pairs, dimensions: int, power: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors of images and texts, each dimension weighted by its correlation to a power."""
        weight = self.correlation_K[:dimensions] ** power
        image = (pairs.image_NE - self.image_mean) @ self.image_EK[:, :dimensions] * weight
        return image, (pairs.text_CU - self.text_mean) @ self.text_UK[:, :dimensions] * weight


def _inverse_root(covariance: np.ndarray, ridge: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    return vectors / np.sqrt(values) @ vectors.T


def recalls(image: np.ndarray, text: np.ndarray, image_C: np.ndarray) -> tuple[float, float]:
    """Returns R@1 of texts to images and of images to texts."""
    ranked = Gallery.of_vectors(image, text, np.arange(len(image)), image_C).ranked(
        range(len(image)), [np.flatnonzero(image_C == number).tolist() for number in range(len(image))]
    )
    of_text = np.array([counts for found in ranked for counts in found.captions]).T
    return float(recall_from_best(of_text, 1).mean()), float(recall_from_best(np.array([r.image for r in ranked]).T, 1).mean())


def pairs_of(corpus: PairCorpus) -> Pairs:
    """Reads features and text vectors of all pairs; of each image the first captions that retrieval uses, in the records' order."""
    assert corpus.states is not None
    (source,) = corpus.sources
    images, texts, owners = [], [], []
    for record_index in np.unique(source.table.record_P).tolist():
        record = source.dataset.record(record_index)
        features = corpus.visual_inputs.load(source.dataset, record).features
        assert features is not None
        owners += [len(images)] * len(record.captions[:CAPTIONS])
        images.append(features.astype(np.float64).mean((0, 1)))
        texts += list(record.captions[:CAPTIONS])
    return Pairs(np.stack(images), corpus.states(texts).astype(np.float64), np.array(owners))


def main() -> None:
    """Fits on the training split and writes the vectors of another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    opened = open_model(options.run, features=options.features, device="cpu")
    opened.runtime.apply()

    def corpus(split: str) -> Pairs:
        data = DataConfig(path=options.data, split=split, captions="all", max_tokens=opened.bundle.processing.max_tokens)
        found = build_pair_corpus(opened.bundle, data, 0, opened.visual_loader())
        cache = next((Path(options.run) / "texts").glob("*.npz"), None) if split == "train" else None
        return pairs_of(
            with_text_states(found, opened.bundle, Accelerator(cpu=True), cache or options.out.with_suffix(f".{split}"))
        )

    train, wanted = corpus("train"), corpus(options.split)
    order = keyed_generator("cca", 0).permutation(len(train.image_NE))
    held, rest = train.of(np.sort(order[:HELD_OUT])), train.of(np.sort(order[HELD_OUT:]))
    best = (-1.0, 0.0, 0, 0.0)
    for ridge in RIDGES:
        fitted = CCA.fit(rest, ridge)
        for dimensions, power in product(DIMENSIONS, POWERS):
            score = sum(recalls(*fitted.vectors(held, dimensions, power), held.image_C))
            best = max(best, (score, ridge, dimensions, power))
    _, ridge, dimensions, power = best
    print(f"chosen on {HELD_OUT} images of the training split: ridge {ridge:g}, {dimensions} dimensions, power {power:g}")
    image, text = CCA.fit(train, ridge).vectors(wanted, dimensions, power)
    np.savez(options.out, image=image.astype(np.float32), text=text.astype(np.float32))
    print(f"{options.out}: R@1 text to image {recalls(image, text, wanted.image_C)[0]:.3f}")


if __name__ == "__main__":
    main()
