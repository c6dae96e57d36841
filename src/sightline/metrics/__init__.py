"""Scores of texts against references, with confidence intervals. Needs no model, no torch and no Java."""

from sightline.metrics.caption import CAPTION_METRICS as CAPTION_METRICS
from sightline.metrics.caption import score_captions as score_captions
from sightline.metrics.ptb import tokenize as tokenize
from sightline.metrics.ptb import tokenize_all as tokenize_all
from sightline.metrics.statistics import bootstrap as bootstrap
from sightline.metrics.statistics import mcnemar as mcnemar
from sightline.metrics.statistics import mean_of as mean_of
from sightline.metrics.statistics import paired_bootstrap as paired_bootstrap
from sightline.metrics.vqa import ANSWER_METRICS as ANSWER_METRICS
from sightline.metrics.vqa import score_answers as score_answers
