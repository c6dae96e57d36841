"""From a dataset folder to samples: everything that can be trained on exactly once, everything else counted by reason."""

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.batches.corpus import Corpus, Source
from sightline.data.batches.order import mixture_order
from sightline.data.batches.plan import BatchRules
from sightline.data.dataset import Dataset
from sightline.data.images.pixels import VisualInputs
from sightline.data.images.tilings import WholeConfig
from sightline.data.samples.encoding import EncodedConversation, TextRules
from sightline.data.samples.length_table import (
    LengthTable,
    LengthTableRules,
    check_trainable,
    load_length_table,
    make_length_table,
    read_table,
)
from sightline.errors import ConfigError, RecordError, SkipLimitError
from sightline.types import Record, Sample
from tests.data.batches.helpers import BUILDER, PICTURES, ROWS, RULES, Sizes
from tests.data.check.planted import folder
from tests.data.kinds import builder_of

LOST = {"placeholder_in_text": 1, "special_token_in_text": 1, "too_long": 1}
KEPT = [(0, k) for k in range(5)] + [(3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(folder(tmp_path_factory.mktemp("corpus") / "set", ROWS, PICTURES))


def table(dataset: Dataset, **rules: Any) -> LengthTable:
    return make_length_table(dataset, range(len(dataset)), BUILDER, LengthTableRules(**{"max_skipped": 1.0, **rules}))


def corpus_of(dataset: Dataset, units: LengthTable, draws: int | None = None) -> Corpus:
    return Corpus((Source("set", dataset, units, BUILDER, len(units) if draws is None else draws),), Sizes(), 4)


def test_several_units_are_what_each_is_alone_and_are_read_before_a_image_is_opened(dataset: Dataset) -> None:
    lost = dataset.record(4).id
    events: list[str] = []

    class Told(Sizes):
        def load(self, dataset: Dataset, record: Record) -> VisualInputs:
            events.append("image")
            if record.id == lost:
                raise RecordError("image_missing", "it was there once")
            return super().load(dataset, record)

    class Heard(Dataset):
        def record(self, index: int) -> Record:
            events.append("text")
            return super().record(index)

    heard = Heard(dataset.path)
    units = table(heard)
    corpus = Corpus((Source("set", heard, units, BUILDER, len(units)),), Told(), 4)
    wanted = [unit for unit in range(len(units)) if units.members(unit)[0][0] in {0, 4, 6, 7}]
    events.clear()
    found = corpus.samples(wanted)
    assert "text" not in events[events.index("image") :]
    for unit, sample in zip(wanted, found, strict=True):
        if units.members(unit)[0][0] == 4:
            assert isinstance(sample, RecordError)
            assert sample.reason == "image_missing"
            continue
        assert isinstance(sample, Sample)
        alone = corpus_of(dataset, units).sample(unit)
        assert [part.ids.tolist() for part in sample.branches] == [part.ids.tolist() for part in alone.branches]
        assert sample.image_slots.tolist() == alone.image_slots.tolist()
        assert (sample.images is None) == (alone.images is None)
        if sample.images is not None:
            np.testing.assert_array_equal(sample.images, alone.images)


class Watched:
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, int]] = []
        self.lost: list[tuple[str, int, str]] = []

    def row(self, record: Record, branch: int, row: EncodedConversation, layouts: object) -> None:
        self.kept.append((record.id, branch))

    def skip(self, record: Record, branch: int, error: RecordError) -> None:
        self.lost.append((record.id, branch, error.reason))


# Units --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_what_cannot_be_trained_on_is_counted_by_reason_and_in_no_unit(dataset: Dataset, share: bool) -> None:
    units = table(dataset, share_prefix=share)
    assert units.skipped == LOST
    members = [member for unit in range(len(units)) for member in units.members(unit)]
    assert members == KEPT
    watched = Watched()
    make_length_table(dataset, range(len(dataset)), BUILDER, LengthTableRules(share_prefix=share), watched)
    assert watched.kept == [(ROWS[index]["id"], branch) for index, branch in KEPT]
    assert watched.lost == [
        ("marker", 0, "placeholder_in_text"),
        ("control", 0, "special_token_in_text"),
        ("long", 1, "too_long"),
    ]


def test_answers_that_are_cut_off_whole_are_nothing_to_learn(dataset: Dataset) -> None:
    short = builder_of("tinyvlm", TextRules(grid=(2, 2), tiling=WholeConfig(), max_tokens=20, too_long="truncate"))
    units = make_length_table(dataset, [7], short, LengthTableRules())
    assert (len(units), units.skipped) == (0, {"no_supervised_token": 1})


def test_neighbours_with_the_same_image_share_it_as_long_as_a_row_holds_them(dataset: Dataset) -> None:
    units = table(dataset)
    assert [units.members(unit) for unit in range(len(units))] == [
        [(0, k) for k in range(5)],
        [(3, 0)],
        [(4, 0), (5, 0)],
        [(6, 0)],
        [(7, 0)],
        [(8, 0)],  # the image of the first record, but no neighbour of it
    ]
    alone = table(dataset, share_prefix=False)
    assert len(alone) == len(KEPT)
    assert units.tokens_unshared.tolist()[0] == alone.tokens[:5].sum()
    assert units.tokens[0] < units.tokens_unshared[0]
    narrow = table(dataset, row_tokens=int(units.tokens[0]) - 1)
    assert [len(narrow.members(unit)) for unit in range(len(narrow))][:2] == [4, 1]
    assert narrow.tokens.max() < units.tokens[0]


def test_samples_are_as_long_as_the_table_says_and_what_the_records_say(dataset: Dataset) -> None:
    units = table(dataset)
    corpus = corpus_of(dataset, units)
    seen = Counter()
    for unit in range(len(units)):
        sample = corpus.sample(unit)
        assert sample.num_tokens == units.tokens[unit]
        assert sum(len(branch.ids) for branch in sample.branches) == units.tokens_unshared[unit]
        assert sum(span.end - span.start for branch in sample.branches for span in branch.spans) == units.supervised[unit]
        assert sample.num_crops == units.crops[unit]
        for branch, (index, number) in zip(sample.branches, units.members(unit), strict=True):
            own = dataset.record(index)
            (expected,) = [BUILDER.encode_conversation(BUILDER.conversations(own)[number], BUILDER.layouts(own))]
            assert branch.ids.tolist() == expected.ids.tolist()
            assert branch.record_id == own.id
            seen[index, number] += 1
            if sample.images is not None:
                assert sample.images[0, 0, 0, 0] == int(own.image_info[0].sha256[:2], 16)
    assert seen == Counter(KEPT)


def samples_of(dataset: Dataset, units: LengthTable) -> list[list[tuple[Any, ...]]]:
    corpus = corpus_of(dataset, units)
    return [
        [(branch.ids.tolist(), branch.spans, branch.record_id) for branch in sample.branches]
        for sample in map(corpus.sample, range(len(units)))
    ]


@pytest.mark.parametrize("where", ["file", "memory", "unwritable"])
def test_what_was_tokenised_for_the_lengths_is_what_is_trained_on(
    dataset: Dataset, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = samples_of(dataset, table(dataset))
    (tmp_path / "taken").write_text("a file where the folder should be")
    cache = {"file": tmp_path / "new", "memory": None, "unwritable": tmp_path / "taken"}[where]
    units = load_length_table(dataset, "train", BUILDER, LengthTableRules(max_skipped=1.0), cache)
    again = load_length_table(dataset, "train", BUILDER, LengthTableRules(max_skipped=1.0), cache)
    monkeypatch.setattr(type(BUILDER), "encode", None)  # a second time would fail
    assert samples_of(dataset, units) == samples_of(dataset, again) == expected
    assert samples_of(dataset, units.subset(np.array([4, 0]))) == [expected[4], expected[0]]
    sent = pickle.loads(pickle.dumps(units))
    assert samples_of(dataset, sent) == expected
    if where == "file":
        (file,) = cache.glob("tokens-*.bin")
        assert file.stat().st_size == 6 * units.texts.begin[-1]
        assert len(pickle.dumps(units.texts)) < 1_500  # goes to workers by its name


def test_the_images_of_a_unit_are_opened_each_time(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(dataset, table(dataset))
    opened = []
    monkeypatch.setattr(
        Sizes, "load", lambda self, dataset, record: (opened.append(record.id), VisualInputs(np.zeros((1, 2, 2, 3), np.uint8)))[1]
    )
    corpus.sample(0)
    corpus.sample(0)
    assert opened == ["five", "five"]


def test_contrast_is_cut_by_unit_and_images_need_something_to_fill_them(dataset: Dataset) -> None:
    units = table(dataset)
    values = np.arange(int(units.supervised.sum()), dtype=np.float32)
    corpus = Corpus((Source("set", dataset, units, BUILDER, len(units)),), Sizes(), 4, values)
    parts = [corpus.sample(unit).blind_logits for unit in range(len(units))]
    assert np.concatenate([part for part in parts if part is not None]).tolist() == values.tolist()
    blind = Corpus(corpus.sources, None, 4)
    with pytest.raises(RecordError) as caught:
        blind.sample(0)
    assert caught.value.reason == "image_in_text_model"


def test_tables_are_cached_by_all_that_they_depend_on_and_torn_ones_made_again(dataset: Dataset, tmp_path: Path) -> None:
    rules = LengthTableRules(max_skipped=1.0)
    first = load_length_table(dataset, "train", BUILDER, rules, tmp_path)
    (file,), (tokens,) = tmp_path.glob("lengths-*.npz"), tmp_path.glob("tokens-*.bin")
    content = file.read_bytes()
    again = load_length_table(dataset, "train", BUILDER, rules, tmp_path)
    assert again.skipped == first.skipped == LOST
    for name in ("record", "branch", "begin", "tokens", "tokens_unshared", "supervised", "crops"):
        assert getattr(again, name).tolist() == getattr(first, name).tolist()
    file.write_bytes(content[: len(content) // 2])
    assert read_table(file, tokens) is None
    assert load_length_table(dataset, "train", BUILDER, rules, tmp_path).tokens.tolist() == first.tokens.tolist()
    assert read_table(file, tokens) is not None
    tokens.write_bytes(tokens.read_bytes()[:-1])
    assert read_table(file, tokens) is None
    tokens.unlink()
    assert read_table(file, tokens) is None
    assert samples_of(dataset, load_length_table(dataset, "train", BUILDER, rules, tmp_path)) == samples_of(dataset, first)
    for changed in ({"max_tokens": 30}, {"supervise": "all_text"}, {"prompt": "x"}, {"captions": "first"}, {"grid": (1, 1)}):
        other = builder_of("tinyvlm", TextRules(**{**vars(RULES), **changed}))
        load_length_table(dataset, "train", other, rules, tmp_path)
    load_length_table(dataset, "train", BUILDER, LengthTableRules(share_prefix=False, max_skipped=1.0), tmp_path)
    assert len(list(tmp_path.glob("lengths-*"))) == len(list(tmp_path.glob("tokens-*"))) == 7


def test_too_much_that_cannot_be_trained_on_is_refused_with_its_reasons(dataset: Dataset) -> None:
    units = table(dataset)
    with pytest.raises(SkipLimitError, match=r"3 of 14 conversations of split 'train' cannot be trained on \(.*too_long 1.*\)"):
        check_trainable(units, 0.21, "train")
    check_trainable(units, 3 / 14, "train")
    with pytest.raises(SkipLimitError, match=r"nothing of split 'train' can be trained on \(it is empty\)"):
        check_trainable(make_length_table(dataset, [], BUILDER, LengthTableRules()), 1.0, "train")


def test_some_units_are_a_table_too(dataset: Dataset) -> None:
    units = table(dataset)
    some = units.subset(np.array([4, 0]))
    assert [some.members(unit) for unit in range(2)] == [units.members(4), units.members(0)]
    assert some.tokens.tolist() == units.tokens[[4, 0]].tolist()
    assert len(units.subset(np.zeros(0, np.int64))) == 0


# Mixtures -----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    shares=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    seed=st.integers(0, 99),
    windowed=st.booleans(),
)
def test_every_source_gives_its_share_and_repeats_nothing_before_all_of_it_was_seen(
    sizes: list[int], shares: list[int], seed: int, windowed: bool
) -> None:
    draws = shares[: len(sizes)]
    epochs = [mixture_order(sizes, draws, seed, epoch, [windowed] * len(sizes)) for epoch in range(4)]
    again = mixture_order(sizes, draws, seed, 2, [windowed] * len(sizes))
    assert again.tolist() == epochs[2].tolist()  # no epoch needs those before it
    firsts = np.cumsum([0, *sizes])
    for number, (size, count) in enumerate(zip(sizes, draws, strict=True)):
        own = [
            [unit - firsts[number] for unit in epoch.tolist() if firsts[number] <= unit < firsts[number + 1]] for epoch in epochs
        ]
        assert [len(part) for part in own] == [count] * 4
        endless = [unit for part in own for unit in part]
        for at in range(0, len(endless) - size + 1, size):
            assert sorted(endless[at : at + size]) == list(range(size))
        rest = endless[len(endless) - len(endless) % size :]
        assert len(set(rest)) == len(rest)


def test_sources_are_mixed_and_not_drawn_one_after_the_other() -> None:
    order = mixture_order([1000, 1000], [1000, 3000], 0, 0, [False, False])
    halves = order[:2000], order[2000:]
    assert all(400 < int((half < 1000).sum()) < 600 for half in halves)
    assert mixture_order([9], [9], 1, 0, [False]).tolist() != mixture_order([9], [9], 2, 0, [False]).tolist()


def test_an_empty_source_cannot_be_drawn_from() -> None:
    assert mixture_order([3, 0], [3, 0], 0, 0, [False, False]).tolist() != []
    with pytest.raises(ConfigError, match=r"source 1 of data\.mixture has no samples to draw from"):
        mixture_order([3, 0], [3, 1], 0, 0, [False, False])


PLAIN = BatchRules(pack=False, row_tokens=90, row_images=3, rows_per_step=4, accumulate=1, sort_by_length=False, seed=5)


def test_units_of_a_mixture_come_from_their_own_source(dataset: Dataset) -> None:
    units = table(dataset)
    some = units.subset(np.array([2, 3]))
    sources = (Source("a", dataset, units, BUILDER, 3), Source("b", dataset, some, BUILDER, 4))
    corpus = Corpus(sources, Sizes(), 4)
    assert corpus.first_sample.tolist() == [0, len(units), len(units) + 2]
    assert [corpus.sample(unit).source for unit in (0, len(units) - 1, len(units), len(units) + 1)] == [0, 0, 1, 1]
    assert corpus.text(len(units)).branches[0].record_id == "q1"
    order = corpus.plan(PLAIN).order(0).tolist()
    assert len([unit for unit in order if unit < len(units)]) == 3
    assert len(order) == 7
