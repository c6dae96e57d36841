"""See `sightline.data.tilings`."""

from sightline.data.tilings import TILINGS as TILINGS
from sightline.data.tilings import AnyTiling as AnyTiling
from sightline.data.tilings import Layout as Layout
from sightline.data.tilings import TilingConfig as TilingConfig
from sightline.data.tilings import WholeConfig as WholeConfig
