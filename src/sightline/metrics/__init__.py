"""Scores of texts against references, with confidence intervals. Needs no model, no torch and no Java."""

from sightline.metrics.caption import CAPTION_METRICS as CAPTION_METRICS
from sightline.metrics.caption import score_captions as score_captions
from sightline.metrics.power import PairedDeviations as PairedDeviations
from sightline.metrics.power import minimum_detectable_difference as minimum_detectable_difference
from sightline.metrics.ptb import tokenize as tokenize
from sightline.metrics.ptb import tokenize_all as tokenize_all
from sightline.metrics.significance import benjamini_hochberg as benjamini_hochberg
from sightline.metrics.significance import holm as holm
from sightline.metrics.significance import mcnemar as mcnemar
from sightline.metrics.significance import sign_flip_test as sign_flip_test
from sightline.metrics.statistics import bootstrap as bootstrap
from sightline.metrics.statistics import difference_over_seeds as difference_over_seeds
from sightline.metrics.statistics import interval_over_seeds as interval_over_seeds
from sightline.metrics.statistics import mean_of as mean_of
from sightline.metrics.statistics import paired_bootstrap as paired_bootstrap
from sightline.metrics.verdict import Verdict as Verdict
from sightline.metrics.verdict import verdict_of as verdict_of
from sightline.metrics.vqa import ANSWER_METRICS as ANSWER_METRICS
from sightline.metrics.vqa import score_answers as score_answers
