"""Connectors map the encoder's grid of patches to visual tokens of the decoder's width. One file per kind."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import SerializeAsAny

from sightline.errors import ConfigError
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
from sightline.registry import KindRegistry

CONNECTORS = KindRegistry[ConnectorConfig](
    ConnectorConfig,
    "sightline.connectors",
    (
        AlignConfig,
        CAbstractorConfig,
        HReducerConfig,
        LinearConfig,
        MLPConfig,
        MoEConfig,
        ResamplerConfig,
        SwiGLUConfig,
        VETConfig,
    ),
)

AnyConnector = Annotated[SerializeAsAny[ConnectorConfig], CONNECTORS]


def connector_from(values: Mapping[str, Any]) -> ConnectorConfig:
    """Returns the connector that a model folder's configuration names.

    Raises:
        ConfigError: there is no such kind, it is of a plug-in that this command does not name, or a value does not fit.
    """
    try:
        return CONNECTORS.read(values)
    except LookupError as error:
        raise ConfigError(f"the model's connector: {error.args[0]}.") from None
    except ValueError as error:
        raise ConfigError(f"the model's connector: {str(error).splitlines()[0]}.") from error
