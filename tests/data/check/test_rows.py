"""Rows under a configuration are those of training; fill rates and padded batches against counting by hand."""

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.batches.packing import pack
from sightline.data.batches.plan import BatchRules, EpochPlan
from sightline.data.check.rows import ConversationLengths, Left, epoch_figures, measure_rows, padded
from sightline.data.dataset import Dataset
from sightline.data.images.tilings import WholeConfig
from sightline.data.samples.encoding import ConversationEncoder, TextRules
from sightline.data.samples.length_table import LengthTableRules, make_length_table
from sightline.data.samples.templates import Template
from sightline.types import IMAGE
from tests.builders import load_tokenizer
from tests.data.check.planted import folder, png, question, record, scene


def builder_of(max_tokens: int = 60, **rules: object) -> ConversationEncoder:
    tokenizer = load_tokenizer("plain")
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]})
    template = Template(tokenizer, "plain")
    return ConversationEncoder(tokenizer, template, TextRules(max_tokens=max_tokens, grid=(2, 3), tiling=WholeConfig(), **rules))  # type: ignore[arg-type]


def data(path: Path) -> Dataset:
    rows = [
        record("five", "a.png", captions=[f"a red thing number {n}" for n in range(5)]),
        question("q1", "b.png", "what is it?", ["a dog"]),
        question("q2", "b.png", "what colour?", ["brown"]),
        record("long", "c.png", captions=["word " * 200, "short"]),
        record("special", "c.png", captions=["it says <|endoftext|> here"]),
        record("text", None, captions=["only text"]),
    ]
    return Dataset(folder(path / "data", rows, {name: png(scene(index)) for index, name in enumerate(("a.png", "b.png", "c.png"))}))


def test_the_numbers_are_those_of_the_length_table_that_training_uses(tmp_path: Path) -> None:
    dataset, conversation_encoder, rules = data(tmp_path), builder_of(), LengthTableRules(row_tokens=120)
    told: list[Left] = []
    figures = measure_rows(dataset, range(len(dataset)), conversation_encoder, rules, told.append)
    units = make_length_table(dataset, range(len(dataset)), conversation_encoder, rules)
    assert figures.table is not None
    for name in ("tokens", "tokens_unshared", "supervised", "crops", "record", "branch", "begin"):
        assert getattr(figures.table, name).tolist() == getattr(units, name).tolist()
    found = asdict(figures.summary())
    assert found["conversations"] == 11
    assert found["skipped"] == units.skipped == {"special_token_in_text": 1, "too_long": 1}
    assert [(left.id, left.conversation, left.reason) for left in told] == [
        ("long", 0, "too_long"),
        ("special", 0, "special_token_in_text"),
    ]
    assert [item["id"] for item in found["left_out"]] == ["long", "special"]
    assert found["kept"] == len(units.record) == 9
    assert found["supervised"]["sum"] == units.supervised.sum()
    assert found["supervised_share"] == pytest.approx(units.supervised.sum() / units.tokens_unshared.sum())
    assert found["visual_tokens_per_image"]["histogram"] == {"edges": [6, 7], "counts": [3]}  # 2 x 3; an image counts once
    assert found["tokens_alone"] == units.tokens_unshared.sum()
    assert found["saved_by_sharing"] == pytest.approx(1 - units.tokens.sum() / units.tokens_unshared.sum())


def test_the_length_of_what_is_too_long_is_measured(tmp_path: Path) -> None:
    dataset, conversation_encoder = data(tmp_path), builder_of(60)
    found = asdict(measure_rows(dataset, range(len(dataset)), conversation_encoder, LengthTableRules()).summary())
    unlimited = builder_of(1000)
    record_ = dataset.record(3)
    length = len(unlimited.encode_conversation(unlimited.conversations(record_)[0], unlimited.layouts(record_)).ids)
    assert found["longest"] == {"tokens": length, "id": "long"}
    assert found["too_long"]["max"] == found["tokens"]["max"] == length
    assert found["tokens"]["n"] == 10
    assert asdict(measure_rows(dataset, range(len(dataset)), unlimited, LengthTableRules()).summary())["too_long"] is None


def test_images_in_a_text_model_are_left_out(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("plain")
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]})
    conversation_encoder = ConversationEncoder(tokenizer, Template(tokenizer, "plain"), TextRules(max_tokens=60))
    found = asdict(measure_rows(data(tmp_path), range(6), conversation_encoder, LengthTableRules()).summary())
    assert found["skipped"] == {"image_in_text_model": 10}
    assert found["visual_tokens_per_image"] is None


def test_nothing_kept_is_no_division_by_zero(tmp_path: Path) -> None:
    found = asdict(measure_rows(data(tmp_path), [], builder_of(), LengthTableRules()).summary())
    assert (found["conversations"], found["supervised_share"], found["saved_by_sharing"], found["tokens"]) == (0, 0, 0, None)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8))
def test_padded_batches_take_the_longest_row_times_their_rows(lengths: list[int], batch: int) -> None:
    expected = sum(max(lengths[at : at + batch]) * len(lengths[at : at + batch]) for at in range(0, len(lengths), batch))
    assert padded(np.array(lengths), batch) == expected


def plan_of(tokens: np.ndarray, crops: np.ndarray, order: np.ndarray, rules: BatchRules) -> EpochPlan:
    return EpochPlan(tokens, crops, lambda epoch: order, rules)


def test_packed_rows_and_steps_are_those_of_the_packer() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 6, 200)
    alone = generator.integers(5, 30, sizes.sum())
    begin = np.concatenate([[0], np.cumsum(sizes)])
    tokens = np.array([alone[a:b].sum() - 4 * (b - a - 1) for a, b in pairwise(begin)])
    crops, order = generator.integers(0, 3, 200), generator.permutation(200)
    rules = BatchRules(pack=True, row_tokens=256, row_images=6, rows_per_step=4, accumulate=2, sort_by_length=True)
    told = epoch_figures(plan_of(tokens, crops, order, rules), ConversationLengths(alone, begin))
    packed = pack(order, tokens, crops, 256, 6)
    assert (told.rows, told.capacity, told.fill) == (len(packed.rows), 256 * len(packed.rows), packed.fill)
    assert told.steps_per_epoch == -(-len(packed.rows) // 4)
    assert told.conversations == len(alone)
    assert told.padded.tokens == alone.sum()
    assert told.padded.batch == round(len(alone) / len(packed.rows) * 2)
    assert told.padded.capacity >= told.padded.capacity_sorted >= told.padded.tokens
    assert told.padded_over_packed == told.padded.capacity / told.capacity
    assert told.rows_full_of_images == sum(crops[list(row)].sum() == 6 for row in packed.rows)


def test_rows_of_their_own_are_padded_batch_by_batch() -> None:
    tokens = np.array([10, 4, 8, 6, 5])
    rules = BatchRules(pack=False, row_tokens=16, row_images=4, rows_per_step=4, accumulate=2, sort_by_length=False)
    plan = plan_of(tokens, np.ones(5, np.int64), np.arange(5), rules)
    told = epoch_figures(plan, ConversationLengths(tokens, np.arange(6)))
    assert (told.rows, told.steps_per_epoch, told.tokens, told.capacity) == (5, 2, 33, 10 * 2 + 8 * 2 + 5)


def test_conversations_of_several_sources_stand_one_after_the_other(tmp_path: Path) -> None:
    dataset, conversation_encoder = data(tmp_path), builder_of()
    first = measure_rows(dataset, [0], conversation_encoder, LengthTableRules())
    second = measure_rows(dataset, [1, 2, 5], conversation_encoder, LengthTableRules())
    assert first.table is not None
    assert second.table is not None
    kept = [first.kept_lengths, second.kept_lengths]
    joined = ConversationLengths.of([first.table, second.table], kept)
    assert len(joined.of_samples(np.array([0]))) == 5
    assert joined.of_samples(np.array([1, 2])).sum() == second.table.tokens_unshared.sum()
    last = ConversationLengths.of([first.table, second.table.subset(np.array([1]))], kept)
    assert last.of_samples(np.array([1])).sum() == second.table.tokens_unshared[1]
