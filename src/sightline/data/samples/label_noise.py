"""Label noise for studies: a share of the records of a split say what belongs to other images.

The texts of the chosen records are exchanged among them, whole (all captions, or the conversation with its answers), so that every
text is still seen as often as before and only the pairing with images is wrong. Which records, and whose text each gets, is a
function of the data set, the split, the share and the seed. A larger share with the same seed holds the records of a smaller one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sightline.data.dataset import Dataset
from sightline.data.samples.length_table import image_keys
from sightline.errors import ConfigError
from sightline.runtime.keyed import derangement, keyed_generator
from sightline.runtime.logs import logger
from sightline.types import Record


class NoisyDataset(Dataset):
    """A dataset folder in which some records carry another record's texts.

    Args:
        path: the folder.
        text_of: for each such record the number of the record whose texts it carries.
        key: of the noise; it becomes part of the fingerprint.
    """

    def __init__(self, path: str | Path, text_of: Mapping[int, int], key: str) -> None:
        super().__init__(path)
        self.text_of, self.key = dict(text_of), key
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} {key}".encode()).hexdigest()

    def __reduce__(self) -> tuple[type["NoisyDataset"], tuple[Path, dict[int, int], str]]:  # type: ignore[override]
        return NoisyDataset, (self.path, self.text_of, self.key)

    def record(self, index: int) -> Record:
        """Record number `index`: its own images, and its texts or another's."""
        record = super().record(index)
        if index not in self.text_of:
            return record
        other = super().record(self.text_of[index])
        return replace(record, captions=other.captions, messages=other.messages, answers=other.answers)


def with_noise(dataset: Dataset, split: str, share: float, seed: int) -> Dataset:
    """The data set with the texts of a share of a split's records exchanged; the data set itself at a share of 0.

    Records without images keep their texts. An exchange is only between records of as many images each, and gives a record
    the texts of other images that are not its own words either.

    Raises:
        ConfigError: so few records, or so many equal ones, cannot be exchanged.
    """
    if share == 0:
        return dataset
    groups: dict[tuple[int, bool], list[int]] = {}
    facts: dict[int, tuple[tuple[str, ...], int]] = {}
    for index in dataset.split_indices(split).tolist():
        record = dataset.record(index)
        if record.images:
            facts[index] = image_keys(record), hash((record.captions, record.messages))
            groups.setdefault((len(record.images), bool(record.captions)), []).append(index)
    text_of: dict[int, int] = {}
    for kind, members in sorted(groups.items()):
        generator = keyed_generator("label noise", seed, *map(str, kind))
        chosen = generator.permutation(members)[: round(share * len(members))].tolist()
        if not chosen:
            continue
        partner = derangement(len(chosen), lambda a, b, chosen=chosen: _alike(facts[chosen[a]], facts[chosen[b]]), generator)
        if partner is None:
            raise ConfigError(
                f"data.noise={share}: {len(chosen)} records of split {split!r} of {dataset.path} cannot exchange their texts so "
                "that each gets other ones.",
                "Use more records, or a larger share.",
            )
        text_of |= {index: chosen[place] for index, place in zip(chosen, partner, strict=True)}
    logger.info("label noise: %d of %d records of split %r carry the texts of other images", len(text_of), len(facts), split)
    return NoisyDataset(dataset.path, text_of, f"noise {split} {share!r} {seed}")


def _alike(first: tuple[tuple[str, ...], int], second: tuple[tuple[str, ...], int]) -> bool:
    """Whether two records have the same images or the same texts."""
    return first[0] == second[0] or first[1] == second[1]
