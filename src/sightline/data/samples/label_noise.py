"""Label noise for studies: gives a share of the records of a split the texts of other images.

The chosen records exchange their texts (all captions, or the conversation with its answers), so that every text still occurs as
often as before and only its image is wrong. The choice is a function of the data set, the split, the share and the seed. With the
same seed, a larger share includes the records of a smaller one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sightline.data.dataset import Dataset
from sightline.errors import ConfigError
from sightline.runtime.keyed import derangement, keyed_generator
from sightline.runtime.logs import logger
from sightline.types import Record


class NoisyDataset(Dataset):
    """A dataset folder in which some records have another record's texts.

    Args:
        path: the folder.
        text_of: for each such record the index of the record whose texts it has.
        key: key of the noise; becomes part of the fingerprint.
    """

    def __init__(self, path: str | Path, text_of: Mapping[int, int], key: str) -> None:
        super().__init__(path)
        self.text_of, self.key = dict(text_of), key
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} {key}".encode()).hexdigest()

    def __reduce__(self) -> tuple[type["NoisyDataset"], tuple[Path, dict[int, int], str]]:  # type: ignore[override]
        return NoisyDataset, (self.path, self.text_of, self.key)

    def record(self, index: int) -> Record:
        """Returns a record with its own images, and its own texts or another record's."""
        record = super().record(index)
        if index not in self.text_of:
            return record
        other = super().record(self.text_of[index])
        return replace(record, captions=other.captions, messages=other.messages, answers=other.answers)


def with_noise(dataset: Dataset, split: str, share: float, seed: int) -> Dataset:
    """Exchanges the texts of a share of a split's records; returns the data set itself at a share of 0.

    Records without images keep their texts. Only records with the same number of images exchange texts, and none gets texts that
    equal its own or belong to the same images.

    Raises:
        ConfigError: the chosen records are too few, or too many of them are equal.
    """
    if share == 0:
        return dataset
    groups: dict[tuple[int, bool], list[int]] = {}
    facts: dict[int, tuple[tuple[str, ...], int]] = {}
    for index in dataset.split_indices(split).tolist():
        record = dataset.record(index)
        if record.images:
            facts[index] = record.image_keys, hash((record.captions, record.messages))
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
                f"data.noise={share}: {len(chosen)} records of split {split!r} of {dataset.path} cannot exchange their texts "
                "so that each record gets a different text.",
                "Use more records, or a larger share.",
            )
        text_of |= {index: chosen[other] for index, other in zip(chosen, partner, strict=True)}
    logger.info("label noise: %d of %d records of split %r have the texts of other images", len(text_of), len(facts), split)
    return NoisyDataset(dataset.path, text_of, f"noise {split} {share!r} {seed}")


def _alike(first: tuple[tuple[str, ...], int], second: tuple[tuple[str, ...], int]) -> bool:
    """Tells whether two records have the same images or the same texts."""
    return first[0] == second[0] or first[1] == second[1]
