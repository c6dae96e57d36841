"""`data check`: damaged files, duplicates, statistics of images and texts, and the rows that a configuration makes of them.

Reading order: `perceptual_hash` (what an image looks like), `examine` (every image, in children), `figures` (numbers),
`duplicates`, `run` (the check), `rows` (under a configuration), `warnings` (in plain words), `report` (all of it), `thumbnails`.
"""

from sightline.data.check.run import CheckOptions as CheckOptions
from sightline.data.check.run import CheckReport as CheckReport
from sightline.data.check.run import Fault as Fault
from sightline.data.check.run import check as check
