"""`caption`: describe the picture; CIDEr-D, BLEU, ROUGE-L against the record's captions, and the share of exact ones."""

from collections.abc import Sequence

from sightline.evaluation.tasks.base import Task
from sightline.metrics.caption import score_captions
from sightline.metrics.statistics import bootstrap, mean_of
from sightline.types import Prediction, Record, Score


class Caption(Task):
    """Records with captions (or whose last turn is the caption)."""

    name = "caption"
    max_new_tokens = 64

    def asks(self, record: Record) -> bool:
        return bool(references_of(record)) and bool(record.images)

    def score(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Score]:
        said = {prediction.record_id: prediction.text for prediction in predictions}
        asked = [record for record in records if record.id in said]
        texts = [said[record.id] for record in asked]
        references = [references_of(record) for record in asked]
        scores = score_captions(texts, references, resamples=self.resamples, seed=self.seed)
        return scores | {"exact": self._exact(texts, asked)}

    def _exact(self, texts: Sequence[str], records: Sequence[Record]) -> Score:
        """Share of texts equal to the canonical caption of their record, or to any of its captions where none is canonical."""
        hits = [float(_folded(text) in map(_folded, _exact_forms(record))) for text, record in zip(texts, records, strict=True)]
        interval = bootstrap(mean_of(hits), len(hits), resamples=self.resamples, seed=self.seed)
        return Score("exact", interval.value, interval.low, interval.high, tuple(hits))


def references_of(record: Record) -> tuple[str, ...]:
    """The captions that a generated one is compared with."""
    if record.captions:
        return record.captions
    last = record.messages[-1]
    return record.answers or ((last.text,) if last.role == "assistant" else ())


def _exact_forms(record: Record) -> tuple[str, ...]:
    canonical = record.meta.get("canonical")
    return (canonical,) if isinstance(canonical, str) else references_of(record)


def _folded(text: str) -> str:
    return " ".join(text.lower().strip(" .").split())
