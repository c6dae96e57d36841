"""Connectors map the encoder's grid of patches to visual tokens of the decoder's width. One file per kind."""

from typing import Annotated

from pydantic import Field

from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.base import Connector as Connector
from sightline.models.connectors.base import ConnectorConfig as ConnectorConfig
from sightline.models.connectors.base import ConnectorShape as ConnectorShape
from sightline.models.connectors.c_abstractor import CAbstractorConfig
from sightline.models.connectors.h_reducer import HReducerConfig
from sightline.models.connectors.linear import LinearConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.connectors.moe import MoEConfig
from sightline.models.connectors.resampler import ResamplerConfig
from sightline.models.connectors.swiglu import SwiGLUConfig
from sightline.models.connectors.vet import VETConfig

CONNECTORS: dict[str, type[ConnectorConfig]] = {
    "align": AlignConfig,
    "c_abstractor": CAbstractorConfig,
    "h_reducer": HReducerConfig,
    "linear": LinearConfig,
    "mlp": MLPConfig,
    "moe": MoEConfig,
    "resampler": ResamplerConfig,
    "swiglu": SwiGLUConfig,
    "vet": VETConfig,
}

AnyConnector = Annotated[
    AlignConfig
    | CAbstractorConfig
    | HReducerConfig
    | LinearConfig
    | MLPConfig
    | MoEConfig
    | ResamplerConfig
    | SwiGLUConfig
    | VETConfig,
    Field(discriminator="kind"),
]
