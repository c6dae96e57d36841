"""Small connectors, for tests."""

from sightline.models.connectors import ConnectorConfig
from sightline.models.connectors.align import AlignConfig
from sightline.models.connectors.c_abstractor import CAbstractorConfig
from sightline.models.connectors.h_reducer import HReducerConfig
from sightline.models.connectors.linear import LinearConfig
from sightline.models.connectors.mlp import MLPConfig
from sightline.models.connectors.moe import MoEConfig
from sightline.models.connectors.resampler import ResamplerConfig
from sightline.models.connectors.swiglu import SwiGLUConfig
from sightline.models.connectors.vet import VETConfig

SMALL: dict[str, ConnectorConfig] = {
    "align": AlignConfig(),
    "c_abstractor": CAbstractorConfig(num_queries=4, depth=1, hidden=8),
    "h_reducer": HReducerConfig(),
    "linear": LinearConfig(),
    "mlp": MLPConfig(),
    "moe": MoEConfig(),
    "resampler": ResamplerConfig(num_queries=5, depth=2, heads=2),
    "swiglu": SwiGLUConfig(),
    "vet": VETConfig(rows=9),
}
