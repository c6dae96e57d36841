"""`grounding`: write the box of a phrase; the share of boxes with an intersection over union of at least 0.5, and its mean."""

from collections import Counter
from collections.abc import Sequence

from sightline.evaluation.tasks.base import Query, ScoreInfo
from sightline.evaluation.tasks.questions import QUESTION, QuestionTask, answered, fill
from sightline.metrics.grounding import parse_box, score_boxes
from sightline.types import Part, Prediction, Record, Score


class Grounding(QuestionTask):
    """Records of one image with boxes; each label that stands for one box only is a phrase to find."""

    name = "grounding"
    scores = (ScoreInfo("acc_50", "accuracy at IoU 0.5", is_share=True), ScoreInfo("iou", "mean IoU"))
    prompt = (
        "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
        "All values are floating point numbers bounded between 0 and 1. "
        f"Please provide the bounding box coordinate of the region this sentence describes: {QUESTION}"
    )
    max_new_tokens = 64

    def queries(self, record: Record, prompt: str) -> tuple[Query, ...]:
        if len(record.images) != 1:
            return ()
        count = Counter(box.label for box in record.boxes)
        return tuple(
            Query(
                record.id if len(record.boxes) == 1 else f"{record.id}#{number}",
                record,
                (fill(prompt, (Part(), Part(box.label))),),
                answers=(f"[{', '.join(f'{value:.6f}' for value in box.xyxy)}]",),
            )
            for number, box in enumerate(record.boxes)
            if box.label and count[box.label] == 1
        )

    def score(self, queries: Sequence[Query], predictions: Sequence[Prediction]) -> dict[str, Score]:
        pairs = answered(queries, predictions)
        right = [box for query, _ in pairs if (box := parse_box(query.answers[0])) is not None]
        found = [parse_box(prediction.text) for _, prediction in pairs]
        return score_boxes(found, right, resamples=self.resamples, seed=self.seed)
