"""Max-mean similarities in blocks against the plain formula and against loops."""

import pytest
import torch

from sightline.ops.late_interaction import late_interaction, late_interaction_reference


def material(seed: int = 0, masked: bool = True) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)
    text = torch.randn(7, 3, 6, generator=generator, dtype=torch.float64)
    of_image = torch.rand(5, 4, generator=generator) > 0.4
    of_text = torch.rand(7, 3, generator=generator) > 0.4
    of_image[:, 0] = of_text[:, 2] = True
    return (image, text, of_image, of_text) if masked else (image, text)


def test_the_reference_is_the_formula_written_as_loops() -> None:
    image, text, of_image, of_text = material()
    to_image, to_text = late_interaction_reference(image, text, of_image, of_text)
    for i in range(5):
        for t in range(7):
            images, texts = image[i][of_image[i]], text[t][of_text[t]]
            products = [[float(a @ b) for a in images] for b in texts]
            assert to_image[i, t].item() == pytest.approx(sum(map(max, products)) / len(products))
            columns = list(zip(*products, strict=True))
            assert to_text[i, t].item() == pytest.approx(sum(map(max, columns)) / len(columns))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("max_bytes", [1, 500, 1 << 20])
def test_blocks_give_values_and_gradients_of_the_reference(masked: bool, max_bytes: int) -> None:
    found, expected = (material(masked=masked) for _ in range(2))
    for case in (found, expected):
        case[0].requires_grad_()
        case[1].requires_grad_()
    weights = torch.randn(2, 5, 7, dtype=torch.float64)
    mine, theirs = late_interaction(*found, max_bytes=max_bytes), late_interaction_reference(*expected)
    for direction in range(2):
        torch.testing.assert_close(mine[direction], theirs[direction])
    torch.stack(mine).mul(weights).sum().backward()
    torch.stack(theirs).mul(weights).sum().backward()
    torch.testing.assert_close(found[0].grad, expected[0].grad)
    torch.testing.assert_close(found[1].grad, expected[1].grad)
    with torch.no_grad():
        torch.testing.assert_close(late_interaction(*found, max_bytes=max_bytes)[0], theirs[0])


def test_without_masks_padding_of_zeros_counts() -> None:
    """The drawing of ComAlign: mean(.85, .90, 0) = .583."""
    image = torch.eye(3)[None]
    text = torch.tensor([[[0.85, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.0]]])
    assert late_interaction(image, text).text_to_image_IT.item() == pytest.approx(1.75 / 3)
    mask = torch.tensor([[True, True, False]])
    assert late_interaction(image, text, None, mask).text_to_image_IT.item() == pytest.approx(1.75 / 2)
