"""Splicing and folding against explicit loops and transformers' own pixel shuffle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from sightline.ops.splice import pixel_shuffle, raster_merge, splice


@settings(max_examples=30, deadline=None)
@given(data=st.data(), rows=st.integers(1, 3), width=st.integers(1, 6), table=st.integers(1, 5))
def test_splice_equals_a_loop_over_slots(data: st.DataObject, rows: int, width: int, table: int) -> None:
    slots = data.draw(st.lists(st.integers(0, rows * width - 1), unique=True))
    sources = data.draw(st.lists(st.integers(-table, table - 1), min_size=len(slots), max_size=len(slots)))
    embeddings = torch.randn(rows, width, 3, dtype=torch.float64, requires_grad=True)
    visual = torch.randn(table, 3, dtype=torch.float64, requires_grad=True)
    ours = splice(embeddings, visual, torch.tensor(slots, dtype=torch.long), torch.tensor(sources, dtype=torch.long))

    expected = embeddings.detach().clone()
    grad_embeddings, grad_visual = torch.ones_like(embeddings), torch.zeros_like(visual)
    for slot, source in zip(slots, sources, strict=True):
        row, column = divmod(slot, width)
        expected[row, column] = visual.detach()[source]  # -1 is the last of the table
        grad_embeddings[row, column] = 0
        grad_visual[source] += 1
    assert torch.equal(ours, expected)
    ours.sum().backward()
    assert torch.equal(embeddings.grad, grad_embeddings)
    assert slots == [] or torch.equal(visual.grad, grad_visual)


def test_splice_leaves_its_inputs_as_they_are_and_takes_the_type_of_the_rows() -> None:
    embeddings, visual = torch.zeros(1, 2, 2, dtype=torch.bfloat16), torch.ones(1, 2)
    out = splice(embeddings, visual, torch.tensor([1]), torch.tensor([0]))
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [[[0, 0], [1, 1]]]
    assert not embeddings.any()


@pytest.mark.parametrize(("rows", "columns", "factor"), [(4, 4, 2), (6, 6, 3), (2, 6, 2), (6, 2, 2), (4, 4, 4), (3, 5, 1)])
def test_pixel_shuffle_equals_a_loop_over_blocks(rows: int, columns: int, factor: int) -> None:
    features = torch.randn(2, rows * columns, 3)
    ours = pixel_shuffle(features, (rows, columns), factor)
    expected = []
    for block_row in range(rows // factor):
        for block_column in range(columns // factor):
            cells = [
                features[:, (block_row * factor + down) * columns + block_column * factor + right]
                for down in range(factor)
                for right in range(factor)
            ]
            expected.append(torch.cat(cells, dim=1))
    assert torch.equal(ours, torch.stack(expected, dim=1))


@pytest.mark.parametrize(("side", "factor"), [(4, 2), (6, 3), (8, 4)])
def test_pixel_shuffle_equals_that_of_idefics3(side: int, factor: int) -> None:
    features = torch.randn(2, side * side, 5)
    theirs = Idefics3Connector.pixel_shuffle(None, features, factor)
    assert torch.equal(pixel_shuffle(features, (side, side), factor), theirs)


def test_raster_merge_is_a_view_and_wraps_around_rows() -> None:
    features = torch.randn(3, 196, 4)
    assert torch.equal(raster_merge(features, 4), features.view(3, 49, 16))
    # 14 columns: the fourth strip holds the last two patches of the first row and the first two of the second.
    assert torch.equal(raster_merge(features, 4)[:, 3].view(3, 4, 4), features[:, [12, 13, 14, 15]])
    assert not torch.equal(raster_merge(features, 4), pixel_shuffle(features, (14, 14), 2))


def test_shapes_are_checked_where_they_enter() -> None:
    with pytest.raises(Exception, match="features_NPE"):
        raster_merge(torch.zeros(4, 2), 2)
