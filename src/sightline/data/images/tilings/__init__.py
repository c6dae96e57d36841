"""How an image becomes crops for the encoder and slots in the row: the only place that counts visual tokens. One file each."""

from typing import Annotated

from pydantic import SerializeAsAny

from sightline.data.images.tilings.anyres import AnyResConfig as AnyResConfig
from sightline.data.images.tilings.base import Layout as Layout
from sightline.data.images.tilings.base import TilingConfig as TilingConfig
from sightline.data.images.tilings.boxes import BoxTilingConfig as BoxTilingConfig
from sightline.data.images.tilings.cover import CoverConfig as CoverConfig
from sightline.data.images.tilings.split import SplitConfig as SplitConfig
from sightline.data.images.tilings.whole import WholeConfig as WholeConfig
from sightline.registry import KindRegistry

TILINGS = KindRegistry[TilingConfig](
    TilingConfig, "sightline.tilings", (AnyResConfig, BoxTilingConfig, CoverConfig, SplitConfig, WholeConfig)
)

AnyTiling = Annotated[SerializeAsAny[TilingConfig], TILINGS]
