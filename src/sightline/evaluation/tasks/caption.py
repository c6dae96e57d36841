"""`caption`: describe the image; CIDEr-D, BLEU, ROUGE-L against the record's captions, and the share of exact ones."""

from collections.abc import Sequence

from sightline.data.records import prompt_messages
from sightline.evaluation.tasks.base import Query, ScoreInfo, Task
from sightline.metrics.caption import SCORER, score_captions
from sightline.metrics.scores import score_of
from sightline.types import Prediction, Record, Score


class Caption(Task):
    """Records with captions (or whose last turn is the caption)."""

    name = "caption"
    has_captions = True
    scores = (
        ScoreInfo("cider_d", "CIDEr-D", top=10.0),
        *(ScoreInfo(f"bleu_{order}", f"BLEU-{order}", is_detail=True) for order in (1, 2, 3)),
        ScoreInfo("bleu_4", "BLEU-4"),
        ScoreInfo("rouge_l", "ROUGE-L"),
        ScoreInfo("exact", "exact captions", is_share=True),
    )

    def asks(self, record: Record) -> bool:
        return bool(captions_of(record)) and bool(record.images)

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        return (Query(record.id, record, prompt_messages(record, prompt)),)

    def references(self, query: Query) -> tuple[str, ...]:
        return captions_of(query.record)

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        text_of = {prediction.id: prediction.text for prediction in predictions}
        answered = [query for query in queries if query.id in text_of]
        texts = [text_of[query.id] for query in answered]
        references = [self.references(query) for query in answered]
        scores = score_captions(texts, references, resamples=self.resamples, seed=self.seed)
        return scores | {"exact": self._exact(texts, [query.record for query in answered])}

    def _exact(self, texts: Sequence[str], records: Sequence[Record]) -> Score:
        """Share of texts equal to the canonical caption of their record, or to any of its captions where none is canonical."""
        hits = [float(_folded(text) in map(_folded, _exact_forms(record))) for text, record in zip(texts, records, strict=True)]
        unparsed = sum(not _folded(text) for text in texts) / len(texts)
        return score_of("exact", hits, SCORER, unparsed, resamples=self.resamples, seed=self.seed)


def captions_of(record: Record) -> tuple[str, ...]:
    """The captions that a generated one is compared with."""
    if record.captions:
        return record.captions
    last = record.messages[-1]
    return record.answers or ((last.text,) if last.role == "assistant" else ())


def _exact_forms(record: Record) -> tuple[str, ...]:
    """Drawn scenes name one caption that states every attribute (`meta.canonical`); other records have equal captions."""
    canonical = record.meta.get("canonical")
    return (canonical,) if isinstance(canonical, str) else captions_of(record)


def _folded(text: str) -> str:
    return " ".join(text.lower().strip(" .").split())
