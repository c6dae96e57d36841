"""Late interaction: time against the bare matrix product and against a chunked einsum, and the peak of its memory.

Images x captions x components as in a block of COCO retrieval. The bare product computes the same similarities in blocks and keeps
none of them; the chunked einsum is what one writes first (`ikw,tjw->iktj`, then max and mean), in chunks of the same bytes.
"""

import argparse

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.findings import Finding, fixed
from benchmarks.measure import Ratio, in_turn, peak_memory
from sightline.ops.late_interaction import MAX_BYTES, late_interaction


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes."""
    parser.add_argument("--images", type=int, default=500, help="images (default 500)")
    parser.add_argument("--captions", type=int, default=2500, help="captions (default 2,500)")
    parser.add_argument("--components", type=int, default=10, help="components of an image and of a caption (default 10)")
    parser.add_argument("--width", type=int, default=512, help="width of a component (default 512)")


def run(options: argparse.Namespace) -> list[Finding]:
    """Measures one size."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        normalize(torch.randn(count, options.components, options.width, generator=generator), dim=-1)
        for count in (options.images, options.captions)
    )
    rows, columns = image.flatten(0, 1), text.flatten(0, 1)
    step = max(1, MAX_BYTES // (4 * len(columns)))
    size = max(1, MAX_BYTES // (4 * options.components**2 * options.captions))

    def product() -> None:
        for begin in range(0, len(rows), step):
            rows[begin : begin + step] @ columns.T

    def einsum() -> list[tuple[Tensor, Tensor]]:
        out = []
        for begin in range(0, len(image), size):
            products = torch.einsum("ikw,tjw->iktj", image[begin : begin + size], text)
            out.append((products.amax(1).mean(2), products.amax(3).mean(1)))
        return out

    with torch.no_grad():
        works = {"product": product, "einsum": einsum, "ours": lambda: late_interaction(image, text)}
        seconds = in_turn(works, options.repeats)
        peak = peak_memory(lambda: late_interaction(image, text), [image, text])

    def ratio(first: str, second: str) -> Ratio:
        return Ratio.of(a / b for a, b in zip(seconds[first], seconds[second], strict=True))

    return [
        Finding("time_over_matmul", ratio("ours", "product"), "time of late interaction over the bare product", at_most=1.15),
        Finding("speedup_over_einsum", ratio("einsum", "ours"), "time of a chunked einsum over late interaction", at_least=1.0),
        fixed("peak_gb", peak / 1e9, "tensor memory above the inputs, outputs included, in GB", at_most=0.2),
    ]
