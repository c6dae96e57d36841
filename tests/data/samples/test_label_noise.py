"""Label noise: which records carry whose texts, and that nothing else changes."""

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sightline.data.dataset import Dataset, open_dataset
from sightline.data.samples.label_noise import with_noise
from sightline.errors import ConfigError
from tests.data.pictures import picture, prepared, put

COUNT = 40


def made(path: Path, rows: Sequence[dict[str, Any]]) -> Dataset:
    for name in {name for row in rows for name in row.get("images", [])}:
        put(path / "in" / name, picture(int(name.partition(".")[0]), size=(20, 20)))
    put(path / "in/records.jsonl", list(rows))
    prepared("records", path / "in", path / "out")
    return open_dataset(path / "out")


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Forty images with two captions each, ten of them for validation; two more records without an image."""
    rows: list[dict[str, Any]] = [
        {"id": f"r{n}", "images": [f"{n}.png"], "captions": [f"a {n}", f"b {n}"], "split": "val" if n >= 30 else "train"}
        for n in range(COUNT)
    ]
    rows += [{"id": f"t{n}", "captions": [f"text {n}"], "split": "train"} for n in range(2)]
    return made(tmp_path_factory.mktemp("captions"), rows)


def changed(noisy: Dataset, clean: Dataset) -> list[int]:
    return [index for index in range(len(clean)) if noisy.record(index) != clean.record(index)]


def test_the_share_of_records_gets_whole_texts_of_others_and_keeps_its_images(captions: Dataset) -> None:
    noisy = with_noise(captions, "train", 0.3, 0)
    places = changed(noisy, captions)
    assert len(places) == 9  # of 30 with images
    for index in places:
        record, own = noisy.record(index), captions.record(index)
        assert (record.id, record.images, record.image_info, record.split) == (own.id, own.images, own.image_info, "train")
        number = record.captions[0].removeprefix("a ")
        assert record.captions == (f"a {number}", f"b {number}") != own.captions
    before = Counter(text for record in captions.records() for text in record.captions)
    assert Counter(text for record in noisy.records() for text in record.captions) == before  # exchanged, not copied


def test_only_the_named_split_and_only_records_with_images_are_touched(captions: Dataset) -> None:
    noisy = with_noise(captions, "train", 1.0, 0)
    assert [noisy.record(index).id for index in changed(noisy, captions)] == [f"r{n}" for n in range(30)]
    assert with_noise(captions, "train", 0.0, 5) is captions


def test_the_same_seed_draws_the_same_noise_and_a_larger_share_holds_the_smaller(captions: Dataset) -> None:
    noisy = with_noise(captions, "train", 0.2, 1)
    again, sent = with_noise(captions, "train", 0.2, 1), pickle.loads(pickle.dumps(noisy))
    assert [record.captions for record in again.records()] == [record.captions for record in noisy.records()]
    assert [record.captions for record in sent.records()] == [record.captions for record in noisy.records()]
    assert again.fingerprint == noisy.fingerprint == sent.fingerprint
    other, more = with_noise(captions, "train", 0.2, 2), with_noise(captions, "train", 0.5, 1)
    assert set(changed(noisy, captions)) < set(changed(more, captions))
    assert changed(other, captions) != changed(noisy, captions)
    assert len({captions.fingerprint, noisy.fingerprint, other.fingerprint, more.fingerprint}) == 4


def test_conversations_move_with_their_answers_and_equal_images_or_texts_are_no_exchange(tmp_path: Path) -> None:
    rows = []
    for n in range(24):  # two questions to each image; every other answer is the same text
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which?"}]}
        answer = "same" if n % 2 else f"thing {n}"
        turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        rows.append({"id": f"q{n}", "images": [f"{n // 2}.png"], "messages": [user, turn], "answers": [answer]})
    clean = made(tmp_path, rows)
    noisy = with_noise(clean, "train", 1.0, 0)
    for index in range(24):
        record, own = noisy.record(index), clean.record(index)
        assert record.messages[-1].text == record.answers[0] != own.answers[0]


def test_too_few_or_too_equal_records_are_refused(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "images": [f"{n}.png"], "captions": ["the same"]} for n in range(4)]
    with pytest.raises(ConfigError, match=r"data.noise=0.5: 2 records of split 'train' .* cannot exchange their texts"):
        with_noise(made(tmp_path, rows), "train", 0.5, 0)
