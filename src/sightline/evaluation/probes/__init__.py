"""Probes: what a model does with an image before it says anything. One file each.

These need no more than the connector and what comes in; `sightline.assembly.evaluate.probe` opens models and data for them.
"""

from sightline.evaluation.probes.base import Findings as Findings
from sightline.evaluation.probes.base import ProbedRecord as ProbedRecord
from sightline.evaluation.probes.gain import GainFindings as GainFindings
from sightline.evaluation.probes.gain import TextGain as TextGain
from sightline.evaluation.probes.noise import NoiseFindings as NoiseFindings
from sightline.evaluation.probes.noise import add_noise as add_noise
from sightline.evaluation.probes.noise import probe_noise as probe_noise
from sightline.evaluation.probes.words import WordFindings as WordFindings
from sightline.evaluation.probes.words import most_used_words as most_used_words
from sightline.evaluation.probes.words import probe_words as probe_words
