"""Images of shapes, made offline, with captions, boxes, questions and hard negatives that are true or false by construction.

Reading order: `world` (what is in an image), `outlines` and `drawing` (how it looks), `statements` (what is true of it),
`language` and `questions` (the words for it), `records` (records and splits). Scene i of a series is a pure function of
(seed, level, i), bit for bit on every platform.
"""

from sightline.data.scenes.drawing import render as render
from sightline.data.scenes.language import captions as captions
from sightline.data.scenes.language import negatives as negatives
from sightline.data.scenes.questions import questions as questions
from sightline.data.scenes.records import NOVEL_PAIRS as NOVEL_PAIRS
from sightline.data.scenes.records import generate as generate
from sightline.data.scenes.records import split_of as split_of
from sightline.data.scenes.world import Scene as Scene
from sightline.data.scenes.world import make_scene as make_scene
