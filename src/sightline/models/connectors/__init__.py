"""Connectors: from the grid of an encoder to visual tokens of the decoder's width. One file each."""

from typing import Annotated

from pydantic import Field

from sightline.models.connectors.base import Connector as Connector
from sightline.models.connectors.base import ConnectorConfig as ConnectorConfig
from sightline.models.connectors.base import ConnectorShape as ConnectorShape
from sightline.models.connectors.linear import LinearConfig
from sightline.models.connectors.mlp import MLPConfig

CONNECTORS: dict[str, type[ConnectorConfig]] = {
    "linear": LinearConfig,
    "mlp": MLPConfig,
}

AnyConnector = Annotated[LinearConfig | MLPConfig, Field(discriminator="kind")]
