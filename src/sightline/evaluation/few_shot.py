"""Few-shot evaluation: which records of another split stand before a question, with their images and their answers.

The examples of a record follow from the seed and its id alone: not from the order of records, a limit, or a stop in between.
"""

from collections.abc import Callable

from sightline.data.dataset import Dataset
from sightline.errors import UsageError
from sightline.runtime.keyed import keyed_generator
from sightline.types import Record


def draw_shots(
    record: Record, dataset: Dataset, pool: Dataset, split: str, count: int, seed: int, suits: Callable[[Record], bool]
) -> tuple[Record, ...]:
    """Examples for a record, all of different images, and none of them the record itself or one of its images.

    Args:
        record: the question.
        dataset: that it is of.
        pool, split: where the examples come from.
        count: how many.
        seed: for choosing the examples.
        suits: whether a record can be an example.

    Raises:
        UsageError: there are too few.
    """
    places = pool.split_indices(split)
    generator = keyed_generator("shots", seed, record.id)
    is_same_data = pool.fingerprint == dataset.fingerprint
    seen = set(record.image_keys)
    tried: set[int] = set()
    chosen: list[Record] = []
    while len(chosen) < count:
        if len(tried) == len(places):
            raise UsageError(
                f"split {split!r} of {pool.path} has {len(chosen)} records that can be examples for {record.id!r}, not {count}.",
                "Ask for fewer: --shots N",
            )
        place = int(generator.integers(len(places)))
        if place in tried:
            continue
        tried.add(place)
        found = pool.record(int(places[place]))
        own = set(found.image_keys)
        if not suits(found) or seen & own or (is_same_data and found.id == record.id):
            continue
        seen |= own
        chosen.append(found)
    return tuple(chosen)
