"""The options of an evaluation, as one value for the command line, sweeps and reports."""

import hashlib
import json
from typing import Literal

from pydantic import Field

from sightline.config import Config
from sightline.evaluation.controls import Control
from sightline.evaluation.tasks.base import Likelihood

_TOLD = ("task", "data", "split", "limit", "control", "noise", "words", "shots", "likelihood", "baseline", "neighbours")
_NEUTRAL = ("batch_size", "resamples")  # no other question: the same answers in other batches, other draws for the intervals


Scoring = Literal["weighted", "mean", "published"]


class QuestionConfig(Config):
    """A task with its data and limits; what a sweep file and a single evaluation have in common."""

    task: str = "caption"
    split: str = "val"
    limit: int | None = Field(default=None, ge=1)
    """Only this many records, drawn with seed 0."""
    prompt: str | None = None
    """Text beside the image; by default the task's, or the one that the model was trained with."""
    likelihood: Likelihood | None = None
    """Score the candidates of a question instead of generating an answer: `gain`, `plain` or `yes_no`."""
    alpha: float | None = Field(default=None, ge=0)
    """Weight of the likelihood without image in `gain`; chosen on `alpha_from` by default."""
    alpha_from: str = "train"
    """Split of the same data that alpha is chosen on."""
    images: int | None = Field(default=None, ge=1)
    """Different images of the gallery of `retrieval`, drawn with `gallery_seed`; all by default."""
    captions: int | None = Field(default=None, ge=1, le=5)
    """Captions of each image of that gallery, drawn as well; the first five by default."""
    gallery_seed: int = Field(default=0, ge=0)
    """Seed for choosing images and captions."""
    baseline: Literal["neighbours"] | None = None
    """Answer with what the training images that are nearest have, instead of a model."""
    neighbours: int = Field(default=30, ge=1)
    """Training images that agree on an answer of the baseline; 1 takes that of the nearest."""
    neighbours_from: str = "train"
    """Where they come from: `DATA:SPLIT`, `DATA`, or a split of the same data."""
    scoring: Scoring | None = None
    """ComAlign's score: levels `weighted` as chosen in training (default), their `mean`, or `published` (the authors' rule)."""
    features: str | None = None
    """A feature store that is read instead of images; a model of an external table needs one."""
    batch_size: int = Field(default=16, ge=1)
    """Rows of a batch."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer; the task's by default."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of the search; 1 is greedy."""
    shots: int = Field(default=0, ge=0)
    """Examples before each question, with images and answers. A control changes the image of the question alone."""
    shots_from: str = "train"
    """Where they come from: `DATA:SPLIT`, `DATA`, or a split of the same data."""
    shots_seed: int = Field(default=0, ge=0)
    """Seed for choosing the examples."""
    words_from: str = "train"
    """Split of the same data that the most used words of an `align` connector are counted on."""
    resamples: int = Field(default=1000, ge=1)
    """Bootstrap resamples of the intervals."""


class EvalSpec(QuestionConfig):
    """One evaluation of one model: everything that its scores depend on beside the model."""

    data: str
    """A dataset folder."""
    control: Control | None = None
    """`blind`, `grey`, `shuffled`, `text`, `blur:SIGMA`, or the images as they are."""
    noise: float | None = Field(default=None, ge=0)
    """Size of Gaussian noise on the visual features, in units of their standard deviation."""
    words: int | None = Field(default=None, ge=1)
    """Allow an `align` connector only so many words: those it uses most."""

    def name_of_rest(self) -> str:
        """Returns a short hash of the options that names of folders do not tell; empty where they have their defaults."""
        left_out = {*_TOLD, *_NEUTRAL}
        rest = self.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8] if rest else ""
