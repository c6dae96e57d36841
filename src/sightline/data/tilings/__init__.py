"""How a picture becomes crops for the encoder and slots in the row: the one truth of the visual-token count. One file each."""

from typing import Annotated

from pydantic import Field

from sightline.data.tilings.anyres import AnyResConfig as AnyResConfig
from sightline.data.tilings.base import Layout as Layout
from sightline.data.tilings.base import TilingConfig as TilingConfig
from sightline.data.tilings.cover import CoverConfig as CoverConfig
from sightline.data.tilings.split import SplitConfig as SplitConfig
from sightline.data.tilings.whole import WholeConfig as WholeConfig

TILINGS: dict[str, type[TilingConfig]] = {
    "anyres": AnyResConfig,
    "cover": CoverConfig,
    "split": SplitConfig,
    "whole": WholeConfig,
}

AnyTiling = Annotated[AnyResConfig | CoverConfig | SplitConfig | WholeConfig, Field(discriminator="kind")]
