"""`h_reducer`: DocOwl's reducer, which merges neighbours in a row because text runs in rows."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, Words, need_grid


class HReducerConfig(ConnectorConfig):
    """`v = W conv(f) + b` with a convolution of 1 x 4 patches, stride 1 x 4 (mPLUG-DocOwl 1.5, Hu et al. 2024, section 3.1).

    The convolution keeps the encoder's width; both maps have biases.

    Differs: DocOwl's code has a further convolution with a GELU before it and a learned token at the end of each image, which the
    paper does not mention; both are left out here.
    """

    kind: Literal["h_reducer"] = "h_reducer"
    reach: int = Field(default=4, ge=1, le=64)
    """Number of patches in a row that are merged into one token."""

    def grid_out(self, shape: ConnectorShape) -> tuple[int, int]:
        need_grid("h_reducer", shape)
        if shape.columns % self.reach:
            near = [reach for reach in range(1, min(shape.columns, 64) + 1) if shape.columns % reach == 0]
            raise ConfigError(
                f"model.connector.reach={self.reach} does not divide the {shape.columns} patches of a row.",
                f"Possible here: {', '.join(map(str, near))}.",
            )
        return shape.rows, shape.columns // self.reach

    def build(self, shape: ConnectorShape) -> nn.Module:
        return HReducer(shape.width_in, shape.width_out, self.reach, (shape.rows, shape.columns))


class HReducer(nn.Module):
    """`v = W conv(f) + b`."""

    def __init__(self, width_in: int, width_out: int, reach: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.convolution = nn.Conv2d(width_in, width_in, (1, reach), (1, reach))
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N R D"]:
        map_NFhw = features_NKF.transpose(1, 2).unflatten(2, self.grid)
        return self.linear(self.convolution(map_NFhw).flatten(2).transpose(1, 2))
