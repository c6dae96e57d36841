"""Feature stores: numbers come back as they were stored, whatever happens while they are written."""

import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sightline.data.dataset import open_dataset
from sightline.data.features.store import (
    FEATURE_DTYPES,
    FeatureDtype,
    FeatureLoader,
    FeatureStore,
    RowFormat,
    count_missing_images,
    format_bytes,
)
from sightline.data.features.writer import MAX_SHARDS, key_of, plan_shards, select_images
from sightline.errors import DataError, NumericsError, RecordError, SightlineError, SkipLimitError, StorageError, UsageError
from sightline.types import ImageInfo, Record
from tests.data import feature_jobs
from tests.data.feature_jobs import digests, numbers, row_format, wanted, write
from tests.data.pictures import lines, picture, prepared, put, tree

floats = st.floats(-1e4, 1e4, width=32)


def hexed(digest: np.ndarray) -> str:
    return digest.tobytes().hex()


def reference(dtype: FeatureDtype, values: np.ndarray) -> np.ndarray:
    """What a store of this kind should give back, by other means than the store's."""
    if dtype == "int8":
        exact = values.astype(np.float64)
        scale = np.abs(exact).max(axis=2, keepdims=True) / 127
        steps = np.divide(exact, scale, out=np.zeros_like(exact), where=scale > 0)
        return np.round(steps) * scale
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return torch.from_numpy(values).to(kinds[dtype]).to(torch.float32).numpy()


# Numbers --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
@given(values=arrays(np.float32, (2, 3, 4), elements=floats))
def test_a_row_comes_back_as_its_number_type_says(dtype: FeatureDtype, values: np.ndarray) -> None:
    given_back = RowFormat(dtype, 3, 4).rounded(values)
    expected = reference(dtype, values)
    if dtype == "int8":  # scales are float32, the reference is float64: ties may fall to either side
        step = np.abs(values).max(axis=2, keepdims=True) / 127
        assert (np.abs(given_back - values) <= step * 0.5001 + 1e-30).all()
        assert (np.abs(given_back - expected) <= step * 1.0001 + 1e-30).all()
    else:
        np.testing.assert_array_equal(given_back.astype(np.float32), expected)


def test_bf16_rounds_to_the_nearest_and_ties_to_even() -> None:
    steps = np.array([1.0, 1 + 2**-8, 1 + 2**-7, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-8)], dtype=np.float32)
    given_back = RowFormat("bf16", 1, 6).rounded(steps.reshape(1, 1, 6)).ravel()
    np.testing.assert_array_equal(given_back, [1.0, 1.0, 1 + 2**-7, 1 + 2**-6, 1 + 2**-7, -1.0])


def test_int8_has_a_scale_for_each_token_and_none_for_a_token_of_zeros() -> None:
    values = np.array([[[127.0, 1.0], [0.0, 0.0], [0.00127, -0.00064]]], dtype=np.float32)
    rows = RowFormat("int8", 3, 2).pack(values)
    np.testing.assert_allclose(rows["scale"][0], [1.0, 0.0, 1e-5], rtol=1e-6)
    np.testing.assert_array_equal(rows["values"][0], [[127, 1], [0, 0], [127, -64]])
    assert RowFormat("int8", 3, 2).row_bytes == 3 * (2 + 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
def test_what_is_not_finite_is_never_stored(dtype: FeatureDtype, bad: float) -> None:
    values = np.zeros((1, 2, 2), dtype=np.float32)
    values[0, 1, 0] = bad
    with pytest.raises(NumericsError, match="NaN or infinity"):
        RowFormat(dtype, 2, 2).pack(values)


def test_what_does_not_fit_fp16_is_refused_with_the_types_that_hold_it() -> None:
    values = np.full((1, 1, 1), 70000, dtype=np.float32)
    with pytest.raises(NumericsError, match=r"70000 does not fit fp16.*bf16"):
        RowFormat("fp16", 1, 1).pack(values)
    assert RowFormat("bf16", 1, 1).rounded(values)[0, 0, 0] == pytest.approx(70000, rel=2**-8)


# Reading --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FEATURE_DTYPES)
def test_every_image_is_found_by_its_hash(tmp_path: Path, dtype: FeatureDtype) -> None:
    of = wanted()
    write(tmp_path / "s", dtype, of)
    store = FeatureStore(tmp_path / "s")
    assert len(store) == len(of)
    assert len(list((tmp_path / "s/shards").iterdir())) > 3
    expected = row_format(dtype).rounded(numbers(of))
    first = 0
    for digest, crops in zip(of.sha256, of.crops, strict=True):
        found = store.features(hexed(digest))
        assert found.dtype == (np.float16 if dtype == "fp16" else np.float32)
        np.testing.assert_array_equal(found, expected[first : first + crops])
        first += crops
    assert store.verify() == len(list((tmp_path / "s/shards").iterdir())) + 1


def test_reading_fp16_and_fp32_copies_nothing(tmp_path: Path) -> None:
    for number in ("fp16", "fp32"):
        write(tmp_path / number, number)  # type: ignore[arg-type]
        found = FeatureStore(tmp_path / number).features(hexed(digests(30)[3]))
        assert not found.flags.owndata
        assert not found.flags.writeable


@pytest.mark.parametrize("name", ["store.json", "index.npy", "shards/{}", "shards"])
def test_a_file_of_a_store_that_is_a_link_out_of_it_is_refused(tmp_path: Path, name: str) -> None:
    store = tmp_path / "s"
    write(store, "fp32")
    place = store / name.format(next((store / "shards").iterdir()).name)
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"leads to .*outside"):
        FeatureStore(store)


def test_unknown_images_are_missing_also_beside_known_ones(tmp_path: Path) -> None:
    write(tmp_path / "s")
    store = FeatureStore(tmp_path / "s")
    near = digests(30)[0].copy()
    near[31] ^= 1
    for name in (hexed(near), "0" * 64, "f" * 64, "not hexadecimal", ""):
        assert name not in store
        with pytest.raises(RecordError) as caught:
            store.features(name)
        assert caught.value.reason == "features_missing"


def test_a_record_of_several_images_gets_all_their_crops_in_order(tmp_path: Path) -> None:
    of = wanted()
    write(tmp_path / "s", "fp32", of)
    pictures = FeatureLoader(FeatureStore(tmp_path / "s"))
    info = tuple(ImageInfo(hexed(of.sha256[place]), 1, 1) for place in (5, 2))
    record = Record("r", images=("a", "b"), image_info=info, captions=("c",))
    filled = pickle.loads(pickle.dumps(pictures)).load(None, record)
    first = np.concatenate([[0], np.cumsum(of.crops)])
    assert filled.pixels is None
    np.testing.assert_array_equal(
        filled.features, np.concatenate([numbers(of)[first[5] : first[6]], numbers(of)[first[2] : first[3]]])
    )
    with pytest.raises(RecordError, match="prepare the data set again"):
        pictures.load(None, Record("r", images=("a",), captions=("c",)))  # type: ignore[arg-type]


def test_the_mean_is_that_of_all_rows(tmp_path: Path) -> None:
    of = wanted()
    write(tmp_path / "s", "fp32", of)
    np.testing.assert_allclose(FeatureStore(tmp_path / "s").mean(), numbers(of).astype(np.float64).mean(0), rtol=1e-6)


# Writing --------------------------------------------------------------------------------------------------------------------


@given(
    crops=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    row_bytes=st.integers(1, 50),
    shard_bytes=st.integers(1, 400),
)
def test_shards_take_whole_images_in_order_and_are_as_full_as_can_be(crops: list[int], row_bytes: int, shard_bytes: int) -> None:
    spans = plan_shards(np.array(crops), row_bytes, shard_bytes)
    assert [first for first, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(crops)
    limit = max(1, shard_bytes // row_bytes)
    for first, end in spans:
        assert sum(crops[first:end]) <= limit or end == first + 1
        assert end == len(crops) or sum(crops[first : end + 1]) > limit


def test_there_are_never_more_shards_than_files_can_be_open() -> None:
    assert len(plan_shards(np.ones(600_000, dtype=np.int64), 1_679_616)) <= MAX_SHARDS
    assert plan_shards(np.ones(1000, dtype=np.int64), 1 << 20)[0] == (0, 256)


@pytest.mark.parametrize("point", ["features.batch@1", "features.batch@9", "features.shard_written@2", "publish.before_rename@1"])
def test_a_store_that_was_killed_goes_on_and_becomes_the_same_bytes(tmp_path: Path, point: str) -> None:
    name, _, at = point.partition("@")
    write(tmp_path / "whole", lost=(4,))
    command = [sys.executable, "-m", "tests.data.feature_jobs", str(tmp_path / "s")]
    killed = subprocess.run(command, env={**os.environ, "SIGHTLINE_FAULTS": f"{name}=kill@{at}"}, check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "s").exists()
    with pytest.raises(DataError, match="not finished"):
        FeatureStore(tmp_path / "s")
    supply = write(tmp_path / "s", lost=(4,))
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]
    asked = {"features.batch@1": 30, "publish.before_rename@1": 0}.get(point)
    assert len(supply.asked) == asked if asked is not None else 0 < len(supply.asked) < 30


def test_a_signal_stops_after_a_stretch_and_keeps_what_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.data.feature_jobs", str(tmp_path / "s")]
    stopped = subprocess.run(
        command, env={**os.environ, "SIGHTLINE_FAULTS": "features.batch=term@9"}, capture_output=True, text=True, check=False
    )
    assert "SIGTERM arrived" in stopped.stderr
    supply = write(tmp_path / "s", lost=(4,))
    assert 0 < len(supply.asked) < 30
    FeatureStore(tmp_path / "s").verify()


def test_lost_images_are_counted_named_and_left_out(tmp_path: Path) -> None:
    of = wanted()
    write(tmp_path / "s", "fp32", of, lost=(4, 17))
    store = FeatureStore(tmp_path / "s")
    assert (store.summary["input"], store.summary["ok"], store.summary["skipped"]) == (30, 28, {"image_broken": 2})
    assert hexed(of.sha256[4]) not in store
    told = lines(tmp_path / "s/skipped.jsonl")
    assert [(line["sha256"], line["reason"]) for line in told] == [(hexed(of.sha256[n]), "image_broken") for n in (4, 17)]
    first = int(of.crops[:5].sum())
    np.testing.assert_array_equal(store.features(hexed(of.sha256[5])), numbers(of)[first : first + of.crops[5]])


def test_too_many_lost_images_stop_the_work(tmp_path: Path) -> None:
    with pytest.raises(SkipLimitError, match=r"2 of 30 images .*image_broken 2.*--max-skipped"):
        write(tmp_path / "s", lost=(0, 1), max_skipped=0.05)
    assert not (tmp_path / "s").exists()


def test_nothing_is_begun_that_the_disk_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 500))
    with pytest.raises(StorageError, match=r"takes .* 500 bytes are free"):
        write(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_the_same_store_again_is_left_alone_and_another_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s")
    before = tree(tmp_path / "s")
    assert write(tmp_path / "s").asked == []
    assert tree(tmp_path / "s") == before
    with pytest.raises(UsageError, match="other images or of another encoder"):
        write(tmp_path / "s", "fp32")
    put(tmp_path / "other/file", "x")
    with pytest.raises(UsageError, match="not a complete store"):
        write(tmp_path / "other")


def test_an_unfinished_store_of_something_else_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_jobs.Made, "features", lambda *arguments: (_ for _ in ()).throw(RecordError("stop")))
    with pytest.raises(RecordError):
        write(tmp_path / "s")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="unfinished store of other images or another encoder"):
        write(tmp_path / "s", "fp32")
    write(tmp_path / "s")


def test_nan_says_which_images_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_jobs, "numbers", lambda of: np.full((int(of.crops.sum()), 3, 5), np.nan, dtype=np.float32))
    with pytest.raises(NumericsError, match="images 0 to 1 of 30"):
        write(tmp_path / "s")


@pytest.mark.parametrize("change", [{"parts": {"weights": "x"}}, {"kind": "external"}, {"row_format": RowFormat("fp32", 3, 5)}])
def test_the_key_depends_on_everything(change: dict) -> None:
    same = {"kind": "encoder", "parts": {"weights": "w"}, "row_format": RowFormat("fp16", 3, 5)}
    assert key_of(**same) == key_of(**same)
    assert key_of(**{**same, **change}) != key_of(**same)


# Damage ---------------------------------------------------------------------------------------------------------------------


def test_a_shard_that_was_cut_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    write(tmp_path / "s")
    shard = tmp_path / "s/shards/00001.npy"
    size = shard.stat().st_size
    os.truncate(shard, size - 10)
    with pytest.raises(DataError, match=rf"00001.npy: {size - 10} bytes, {size} expected"):
        FeatureStore(tmp_path / "s")
    shard.unlink()
    with pytest.raises(DataError, match=r"00001.npy: No such file"):
        FeatureStore(tmp_path / "s")


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    write(tmp_path / "s")
    shard = tmp_path / "s/shards/00002.npy"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged: shards/00002.npy differ"):
        FeatureStore(tmp_path / "s").verify()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 9}', '{"schema": 1, "kind": "encoder"}'])
def test_a_damaged_summary_is_an_error_of_ours(tmp_path: Path, text: str) -> None:
    write(tmp_path / "s")
    put(tmp_path / "s/store.json", text)
    with pytest.raises(DataError, match=r"store.json"):
        FeatureStore(tmp_path / "s")


def test_a_folder_that_is_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(SightlineError, match="sightline data features"):
            FeatureStore(path)


# Which images -------------------------------------------------------------------------------------------------------------


def dataset(folder: Path, seeds: list[int], splits: list[str] | None = None) -> Path:
    """A dataset folder with one image a record."""
    rows = []
    for place, seed in enumerate(seeds):
        put(folder / "in" / f"{seed}.png", picture(seed))
        split = splits[place] if splits else "train"
        rows.append({"id": f"r{place}", "images": [f"{seed}.png"], "captions": ["c"], "split": split})
    put(folder / "in/records.jsonl", rows)
    prepared("records", folder / "in", folder / "set")
    return folder / "set"


def test_each_image_is_wanted_once_in_order_of_first_appearance(tmp_path: Path) -> None:
    sets = [open_dataset(dataset(tmp_path / "a", [3, 1, 3, 2])), open_dataset(dataset(tmp_path / "b", [2, 9]))]
    found = select_images(sets, (), lambda info: info.width)
    names = [sets[d].record(r).image_info[k].sha256 for d, r, k in zip(found.dataset, found.record, found.image, strict=True)]
    assert [hexed(digest) for digest in found.sha256] == names
    assert list(zip(found.dataset, found.record, strict=True)) == [(0, 0), (0, 1), (0, 3), (1, 1)]
    assert found.crops.tolist() == [9, 9, 9, 9]
    assert [source["fingerprint"] for source in found.sources] == [entry.fingerprint for entry in sets]


def test_splits_are_taken_where_they_are_and_must_be_somewhere(tmp_path: Path) -> None:
    sets = [
        open_dataset(dataset(tmp_path / "a", [1, 2], ["train", "val"])),
        open_dataset(dataset(tmp_path / "b", [3])),
    ]
    assert len(select_images(sets, ("val",), lambda info: 1)) == 1
    assert len(select_images(sets, ("train",), lambda info: 1)) == 2
    with pytest.raises(DataError, match=r"no split 'test'; it has 'train', 'val'"):
        select_images(sets, ("test",), lambda info: 1)


def test_text_alone_has_no_images_to_store(tmp_path: Path) -> None:
    put(tmp_path / "in/records.jsonl", [{"id": "t", "captions": ["only text"]}])
    prepared("records", tmp_path / "in", tmp_path / "set")
    with pytest.raises(DataError, match="no images"):
        select_images([open_dataset(tmp_path / "set")], (), lambda info: 1)


def test_a_store_knows_the_splits_it_was_made_from_and_looks_others_up(tmp_path: Path) -> None:
    known = open_dataset(dataset(tmp_path / "a", [1, 2, 3], ["train", "train", "val"]))
    other = open_dataset(dataset(tmp_path / "b", [2, 3, 4]))
    of = select_images([known], ("train",), lambda info: 1)
    write(tmp_path / "s", of=of)
    store = FeatureStore(tmp_path / "s")
    assert store.knows(known, "train")
    assert not store.knows(known, "val")
    assert not store.knows(other, "train")
    assert count_missing_images(store, known, "val") == (1, 1)
    assert count_missing_images(store, other, "train") == (2, 3)


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (75_264_000, "75.26 MB"), (179e9, "179 GB"), (2.5e12, "2.5 TB")])
def test_sizes_are_told_in_units_of_a_thousand(count: float, text: str) -> None:
    assert format_bytes(count) == text
