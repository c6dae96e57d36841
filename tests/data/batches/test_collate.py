"""A batch holds every sample exactly once: it is taken apart again here, cell by cell, and compared with what went in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.batches.collate import collate
from sightline.types import PADDING, Batch, Sample
from tests.builders import batch_of, branch
from tests.builders import sample as drawn_sample

PAD, PER_CROP = 7, 4
ROWS = st.lists(
    st.lists(
        st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2), st.integers(1, 3)), min_size=0, max_size=3
    ),
    min_size=1,
    max_size=4,
)
Drawn = list[list[tuple[list[int], int, int]]]


def made(drawn: Drawn) -> list[list[Sample]]:
    """Rows of samples: texts, images and length of the prompt of each."""
    seeds = iter(range(1000))
    return [
        [
            drawn_sample(next(seeds), texts, num_images=images, prompt=prompt, side=2, tokens_per_crop=PER_CROP)
            for texts, images, prompt in row
        ]
        for row in drawn
    ]


def cells_of(batch: Batch, number: int, part: int, sample: Sample) -> list[tuple[int, int]]:
    """`(position, flat slot)` of what branch `part` of a sample can see of it, in order of position."""
    tokens = batch.tokens
    own = (PADDING, part) if len(sample.branches) > 1 else (0,)
    flat = zip(*(column.flatten().tolist() for column in (tokens.position_BT, tokens.sample_BT, tokens.branch_BT)), strict=True)
    at = [(position, slot) for slot, (position, of, branch) in enumerate(flat) if of == number and branch in own]
    return sorted(at)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(0, 30))
def test_each_branch_reads_as_it_would_alone_and_nothing_else_is_there(drawn: Drawn, min_width: int) -> None:
    rows = made(drawn)
    batch = collate(rows, PAD, min_width).to_batch()
    ids = batch.tokens.ids_BT.flatten()
    samples = [sample for row in rows for sample in row]
    for number, sample in enumerate(samples):
        for part, alone in enumerate(sample.branches):
            cells = cells_of(batch, number, part, sample)
            assert [position for position, _ in cells] == list(range(len(alone.ids)))
            assert [int(ids[slot]) for _, slot in cells] == alone.ids.tolist()
    row_of = batch.tokens.sample_BT
    assert int((row_of != PADDING).sum()) == sum(sample.num_tokens for sample in samples)
    assert set(batch.tokens.ids_BT[row_of == PADDING].tolist()) <= {PAD}
    firsts = np.cumsum([0, *map(len, rows)])
    for row in range(len(rows)):
        inside = row_of[row][row_of[row] != PADDING].tolist()
        assert inside == sorted(inside)
        assert set(inside) == set(range(firsts[row], firsts[row + 1]))
    assert row_of.shape[1] == max([min_width, *(sum(sample.num_tokens for sample in row) for row in rows)])
    assert batch.record_ids == tuple(tuple(part.record_id for part in sample.branches) for sample in samples)


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_every_target_stands_once_and_is_predicted_from_the_token_before_it(drawn: Drawn) -> None:
    rows = made(drawn)
    batch = collate(rows, PAD).to_batch()
    told = batch.supervision
    samples = [sample for row in rows for sample in row]
    expected = [
        (number, part, span.turn, place, int(alone.ids[place]))
        for number, sample in enumerate(samples)
        for part, alone in enumerate(sample.branches)
        for span in alone.spans
        for place in range(span.start, span.end)
    ]
    found = []
    seen = {
        (number, part): {slot: position for position, slot in cells_of(batch, number, part, sample)}
        for number, sample in enumerate(samples)
        for part in range(len(sample.branches))
    }
    for entry in range(len(told)):
        number, part, slot = int(told.sample_S[entry]), int(told.branch_S[entry]), int(told.slot_S[entry])
        position = seen[number, part][slot]
        found.append((number, part, int(told.turn_S[entry]), position + 1, int(told.target_S[entry])))
    assert found == expected
    spans = [
        (number, part) for number, sample in enumerate(samples) for part, alone in enumerate(sample.branches) for _ in alone.spans
    ]
    assert sorted(set(told.span_S.tolist())) == list(range(len(spans)))
    assert [spans[span] for span in told.span_S.tolist()] == [entry[:2] for entry in expected]


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_every_visual_slot_is_filled_from_its_own_samples_image(drawn: Drawn) -> None:
    rows = made(drawn)
    batch = collate(rows, PAD).to_batch()
    samples = [sample for row in rows for sample in row]
    expected = [
        (number, picture, k)
        for number, sample in enumerate(samples)
        for picture in range(sample.num_crops)
        for k in range(PER_CROP)
    ]
    if not expected:
        assert batch.visual is None
        return
    assert batch.visual is not None
    assert batch.visual.pixels_NHWC is not None
    found = []
    for slot, source in zip(batch.visual.slot_M.tolist(), batch.visual.visual_index_M.tolist(), strict=True):
        number = int(batch.tokens.sample_BT.flatten()[slot])
        pixels = batch.visual.pixels_NHWC[source // PER_CROP].numpy()
        picture = next(
            n for n, own in enumerate(samples[number].images if samples[number].images is not None else ()) if (own == pixels).all()
        )
        found.append((number, picture, source % PER_CROP))
        place = int(batch.tokens.position_BT.flatten()[slot])
        assert place == samples[number].image_slots[picture * PER_CROP + source % PER_CROP]
    assert found == expected


def test_captions_of_one_image_lie_behind_it_side_by_side() -> None:
    parts = (branch([5, 9, 9, 6, 1, 2], (4, 6), slots=[1, 2]), branch([5, 9, 9, 6, 3], (4, 5), slots=[1, 2]))
    shared = Sample(parts, 4, np.array([0, 1]), np.zeros((1, 2, 2, 3), np.uint8), tokens_per_crop=2)
    tokens = batch_of([shared]).tokens
    assert tokens.ids_BT.tolist() == [[5, 9, 9, 6, 1, 2, 3]]
    assert tokens.position_BT.tolist() == [[0, 1, 2, 3, 4, 5, 4]]
    assert tokens.branch_BT.tolist() == [[-1, -1, -1, -1, 0, 0, 1]]
    told = batch_of([shared]).supervision
    assert told.slot_S.tolist() == [3, 4, 3]  # the prefix's last slot predicts the first token of both
    assert told.target_S.tolist() == [1, 2, 3]
    assert not tokens.is_plain


def test_rows_of_one_unshared_sample_are_plain() -> None:
    assert batch_of([drawn_sample(1, [3])], [drawn_sample(2, [2])], []).tokens.is_plain
    assert not batch_of([drawn_sample(1, [3]), drawn_sample(2, [2])]).tokens.is_plain


def test_separators_keep_their_numbers_and_images_are_counted_on() -> None:
    one = drawn_sample(1, [2], num_images=1, side=2)
    framed = replace(one, visual_index=np.array([0, -1, 1, -2]))
    visual = batch_of([one, framed]).visual
    assert visual is not None
    assert visual.visual_index_M.tolist() == [0, 1, 2, 3, 4, -1, 5, -2]


def test_features_take_the_place_of_pixels_and_sources_are_told() -> None:
    one = drawn_sample(1, [2], num_images=1, side=2)
    stored = replace(one, images=None, features=np.ones((1, 3, 5), np.float16), source=2)
    batch = batch_of([stored, replace(stored, source=1)])
    assert batch.visual is not None
    assert batch.visual.pixels_NHWC is None
    assert batch.visual.features_NPE is not None
    assert (batch.visual.features_NPE.shape, batch.visual.features_NPE.dtype) == ((2, 3, 5), torch.float16)
    assert batch.supervision.source_S.tolist() == [2, 2, 1, 1]


def test_stored_contrast_stands_beside_its_targets_or_is_left_out_of_all() -> None:
    first, second = drawn_sample(1, [2, 1], num_images=1, side=2), drawn_sample(2, [1], num_images=0)
    values = replace(first, blind_logits=np.array([1.0, 2.0, 3.0])), replace(second, blind_logits=np.array([4.0]))
    blind_logits = batch_of([values[0]], [values[1]]).blind_logits_S
    assert blind_logits is not None
    assert blind_logits.tolist() == [1, 2, 3, 4]
    assert blind_logits.dtype == torch.float32
    assert batch_of([values[0], second]).blind_logits_S is None
    assert batch_of([]).blind_logits_S is None


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_without_samples_are_padding_and_ask_for_nothing(rows: int) -> None:
    batch = collate([[]] * rows, PAD, 5).to_batch()
    assert batch.tokens.ids_BT.tolist() == [[PAD] * 5] * rows
    assert set(batch.tokens.sample_BT.flatten().tolist()) == {PADDING}
    assert len(batch.supervision) == 0
    assert batch.visual is None
