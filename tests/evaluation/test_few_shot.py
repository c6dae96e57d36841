"""Examples of few-shot evaluation: never the question itself, drawn by seed and id alone."""

import pytest

from sightline.data.dataset import Dataset, open_dataset
from sightline.errors import UsageError
from sightline.evaluation.few_shot import draw_shots
from sightline.types import Record
from tests.data.pictures import picture, prepared, put


def captioned(record: Record) -> bool:
    return bool(record.captions) and bool(record.images)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Twelve questions; and a pool in which some of their images stand again, under other ids and names."""
    root = tmp_path_factory.mktemp("shots")
    for number in range(12):
        put(root / f"ask/{number}.png", picture(number))
        put(root / f"pool/p{number}.png", picture(number + 6))
    rows = [{"id": f"r{number}", "images": [f"{number}.png"], "captions": [f"Number {number}."]} for number in range(12)]
    put(root / "ask/records.jsonl", rows)
    rows = [{"id": f"r{number}", "images": [f"p{number}.png"], "captions": [f"Example {number}."]} for number in range(12)]
    rows.append({"id": "twice", "images": ["p3.png"], "captions": ["The same image once more."]})
    rows.append({"id": "text", "captions": ["No image."]})
    put(root / "pool/records.jsonl", rows)
    for name in ("ask", "pool"):
        prepared("records", root / name, root / f"{name}-set")
    return open_dataset(root / "ask-set"), open_dataset(root / "pool-set")


def draw(sets: tuple[Dataset, Dataset], record: Record, count: int = 3, seed: int = 0) -> list[Record]:
    return list(draw_shots(record, sets[0], sets[1], "train", count, seed, captioned))


def test_examples_show_other_images_than_the_question_and_than_each_other(sets: tuple[Dataset, Dataset]) -> None:
    """Six images of the pool are those of questions, by their bytes and not by their names; one stands there twice."""
    for record in sets[0].records():
        shared = sum(other.image_keys == record.image_keys for other in sets[1].records())
        most = draw(sets, record, 12 - bool(shared))
        shown = [hash_ for example in (record, *most) for hash_ in example.image_keys]
        assert len(set(shown)) == len(shown)
        assert all(captioned(example) for example in most)


def test_a_record_is_no_example_of_itself_in_its_own_split(sets: tuple[Dataset, Dataset]) -> None:
    for record in sets[0].records():
        found = draw_shots(record, sets[0], sets[0], "train", 11, 0, captioned)
        assert sorted([record.id, *(example.id for example in found)]) == sorted(f"r{number}" for number in range(12))


def test_an_equal_id_of_another_data_set_is_another_record(sets: tuple[Dataset, Dataset]) -> None:
    record = next(sets[0].records())
    assert record.id in {example.id for example in draw(sets, record, 12)}


def test_the_draw_depends_on_seed_and_id_alone(sets: tuple[Dataset, Dataset]) -> None:
    records = list(sets[0].records())
    drawn = {record.id: [example.id for example in draw(sets, record)] for record in records}
    again = {record.id: [example.id for example in draw(sets, record)] for record in reversed(records)}
    other = {record.id: [example.id for example in draw(sets, record, seed=1)] for record in records}
    assert drawn == again
    assert drawn != other
    assert len({tuple(ids) for ids in drawn.values()}) > 6
    assert [example.id for example in draw(sets, records[0], 5)][:3] == drawn["r0"]  # more examples begin with the same ones


def test_too_few_examples_are_an_error_that_names_both_numbers(sets: tuple[Dataset, Dataset]) -> None:
    with pytest.raises(UsageError, match=r"'train' of .* has 12 records that can be examples for 'r0', not 13"):
        draw(sets, next(sets[0].records()), 13)
