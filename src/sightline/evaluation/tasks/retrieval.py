"""`retrieval`: find the captions of an image and the image of a caption among all of a split; recall at 1, 5 and 10."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from sightline.data.records import prompt_messages
from sightline.evaluation.tasks.base import Query, ScoreInfo, Task
from sightline.evaluation.tasks.composition import Composition
from sightline.evaluation.tasks.questions import answered
from sightline.metrics.retrieval import KS, RankedImage, median_rank, recall_from_best
from sightline.metrics.scores import score_of
from sightline.metrics.statistics import Statistic, mean_by_cluster, mean_of
from sightline.runtime.keyed import keyed_generator
from sightline.types import Prediction, Record, Score

SCORER = "retrieval 1"
CAPTIONS = 5  # captions of an image that take part, as in the protocol of COCO and Flickr30k
TO_TEXT, TO_IMAGE = "i2t", "t2i"


class Retrieval(Task):
    """Records with one image and captions, of which the first five take part.

    Each image is ranked against each caption (query form `embed`): a dual encoder embeds them, any other model gives the likelihood
    of each caption given each image. Each prediction holds where the right candidates of an image and of its captions stand
    (`RankedImage`).
    """

    name = "retrieval"
    scores = (
        ScoreInfo("rsum", "sum of six recalls", top=600.0, times=1.0),
        *(
            ScoreInfo(f"{direction}_r{k}", f"{label} R@{k}")
            for direction, label in ((TO_IMAGE, "text to image"), (TO_TEXT, "image to text"))
            for k in KS
        ),
        ScoreInfo(
            "t2i_median_rank", "text to image, median rank", top=float("inf"), is_detail=True, higher_is_better=False, times=1.0
        ),
        ScoreInfo(
            "i2t_median_rank", "image to text, median rank", top=float("inf"), is_detail=True, higher_is_better=False, times=1.0
        ),
        ScoreInfo("i2t_r_precision", "image to text, R-Precision", is_detail=True),
        ScoreInfo("i2t_map_at_r", "image to text, mAP@R", is_detail=True),
    )
    prompt = ""
    confirm_prompt = Composition.confirm_prompt
    likelihood = "gain"

    def asks(self, record: Record) -> bool:
        return len(record.images) == 1 and bool(record.captions)

    def drawn(self, records: list[Record], images: int | None, captions: int | None, seed: int) -> list[Record]:
        """Returns a smaller gallery: so many different images with all their records, and of each record so many captions."""
        keys = list(dict.fromkeys(record.image_keys for record in records))
        if images is not None and images < len(keys):
            kept = {keys[place] for place in keyed_generator("gallery", seed).permutation(len(keys))[:images].tolist()}
            records = [record for record in records if record.image_keys in kept]
        return [record if captions is None else _with_captions(record, captions, seed) for record in records]

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        captions = record.captions[:CAPTIONS]
        return (Query(record.id, record, prompt_messages(record, prompt), "embed", captions, captions),)

    def references(self, query: Query) -> tuple[str, ...]:
        return query.candidates

    def shown(self, query: Query, prediction: Prediction) -> str:
        """Returns the rank of the image's best caption, and those of the image by each of its captions."""
        if prediction.scores is None:
            return ""
        found = RankedImage.from_scores(prediction.scores)
        of_captions = ", ".join(str(above + 1) for above, _, _ in found.captions)
        return f"best caption at rank {found.image[0] + 1}; by its captions the image is at rank {of_captions}"

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        ranked = [RankedImage.from_scores(prediction.scores or ()) for _, prediction in answered(queries, predictions)]
        image = np.array([found.image for found in ranked]).T
        captions = np.array([counts for found in ranked for counts in found.captions]).T
        cluster = np.repeat(np.arange(len(ranked)), [len(found.captions) for found in ranked])
        to_text = {k: recall_from_best(image, k) for k in KS}
        to_image = {k: recall_from_best(captions, k) for k in KS}
        out: dict[str, Score] = {}
        for k in KS:
            statistic, _ = mean_by_cluster(to_image[k], cluster)
            out[f"t2i_r{k}"] = self._score(f"t2i_r{k}", _by_image(to_image[k], cluster), statistic)
            out[f"i2t_r{k}"] = self._score(f"i2t_r{k}", to_text[k], mean_of(to_text[k]))
        text_sum, image_sum = (np.sum(list(values.values()), axis=0) for values in (to_text, to_image))
        items = 100 * (text_sum + _by_image(image_sum, cluster))
        rsum = _sum_of_means(text_sum, image_sum, cluster)
        out = {"rsum": self._score("rsum", items, rsum), **out}
        out["t2i_median_rank"] = self._median("t2i_median_rank", captions, cluster)
        out["i2t_median_rank"] = self._median("i2t_median_rank", image, np.arange(len(ranked)))
        precision, average = [found.precision for found in ranked], [found.average for found in ranked]
        out["i2t_r_precision"] = self._score("i2t_r_precision", precision, mean_of(precision))
        out["i2t_map_at_r"] = self._score("i2t_map_at_r", average, mean_of(average))
        return {info.name: out[info.name] for info in self.scores}

    def _score(self, name: str, items: Sequence[float] | Float[np.ndarray, " N"], statistic: Statistic) -> Score:
        return score_of(name, list(items), SCORER, statistic=statistic, resamples=self.resamples, seed=self.seed)

    def _median(self, name: str, counts_3Q: Int[np.ndarray, "3 Q"], cluster_Q: Int[np.ndarray, " Q"]) -> Score:
        """Returns the median with its interval; a median is no function of sums, so images are drawn here."""
        generator, images = keyed_generator("median", self.seed), int(cluster_Q.max()) + 1
        first = np.searchsorted(cluster_Q, np.arange(images + 1))
        values = []
        for _ in range(self.resamples):
            times = np.bincount(generator.integers(0, images, images), minlength=images)
            values.append(median_rank(np.repeat(counts_3Q, np.repeat(times, np.diff(first)), axis=1)))
        low, high = np.quantile(values, (0.025, 0.975))
        return Score(name, median_rank(counts_3Q), float(low), float(high), (), SCORER, None, images)


def _with_captions(record: Record, count: int, seed: int) -> Record:
    order = keyed_generator("gallery captions", record.id, seed).permutation(len(record.captions))
    return replace(record, captions=tuple(record.captions[place] for place in sorted(order[:count].tolist())))


def _by_image(values_C: Float[np.ndarray, " C"], cluster_C: Int[np.ndarray, " C"]) -> Float[np.ndarray, " N"]:
    """Returns the mean of each image's captions."""
    return np.bincount(cluster_C, values_C) / np.bincount(cluster_C)


def _sum_of_means(image_N: Float[np.ndarray, " N"], text_C: Float[np.ndarray, " C"], cluster_C: Int[np.ndarray, " C"]) -> Statistic:
    """Returns 100 times the mean over images plus the mean over captions, with images drawn."""
    terms = np.stack([image_N, np.ones(len(image_N)), np.bincount(cluster_C, text_C), np.bincount(cluster_C).astype(float)])
    of_sums: Callable[[np.ndarray], np.ndarray] = lambda sums: 100 * (sums[:, 0] / sums[:, 1] + sums[:, 2] / sums[:, 3])  # noqa: E731
    return Statistic(terms, of_sums)
