"""A place between an encoder and a decoder, and what stands in it: small, and no two sizes alike, so that none can be swapped."""

import torch
from torch import Tensor, nn

from sightline.models.connectors import Connector, ConnectorConfig, ConnectorShape

CROPS, ROWS, COLUMNS, WIDTH_IN, WIDTH_OUT, WORDS = 3, 4, 8, 6, 10, 23
SHAPE = ConnectorShape(ROWS, COLUMNS, WIDTH_IN, WIDTH_OUT, WORDS)


def made(config: ConnectorConfig, shape: ConnectorShape = SHAPE, seed: int = 3) -> Connector:
    """A connector in float64 and `eval` whose parameters are all moved, so that a forgotten bias or norm is seen."""
    torch.manual_seed(seed)
    connector = Connector(config, shape).double().eval()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return connector


def features(shape: ConnectorShape = SHAPE, crops: int = CROPS, seed: int = 4) -> Tensor:
    """Features of some crops, raster order."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(crops, shape.num_tokens, shape.width_in, generator=draw, dtype=torch.float64)


def embeddings(shape: ConnectorShape = SHAPE) -> Tensor:
    """The decoder's input embeddings."""
    draw = torch.Generator().manual_seed(5)
    return torch.randn(shape.num_words, shape.width_out, generator=draw, dtype=torch.float64)


def unused() -> Tensor:
    """For connectors that do not mix the decoder's words."""
    raise AssertionError("this connector must not read the decoder's embeddings")


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters by name, without a graph."""
    return {name: value.detach() for name, value in module.named_parameters()}


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`W x + b`, written out."""
    out = torch.einsum("...i,oi->...o", x, weight)
    return out if bias is None else out + bias


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Over the last axis, written out."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * scale + shift


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """In float64: a part in 10^11 is rounding."""
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
