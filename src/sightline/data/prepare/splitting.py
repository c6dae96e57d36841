"""Splits by hash: whether a record is held out depends on the seed and on its id or image alone, never on its place.

`--split val=0.1` draws from the records whose split is "train"; others keep theirs. With `--by image` the draw goes by what the
image shows (its sha256), and records that share an image, directly or through others, always go together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sightline.data.readers.base import DEFAULT_SPLIT, uniform
from sightline.errors import UsageError
from sightline.types import ImageInfo


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Shares of the "train" records that go to other splits.

    Raises:
        UsageError: a share is not between 0 and 1, or together they are more than 1.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    by: Literal["id", "image"] = "id"
    seed: int = 0

    def __post_init__(self) -> None:
        if any(not 0 < share < 1 for share in self.shares.values()) or sum(self.shares.values()) >= 1:
            given = ", ".join(f"{name}={share}" for name, share in self.shares.items())
            raise UsageError(f"--split {given}: shares must be between 0 and 1 and leave something for train.")
        if DEFAULT_SPLIT in self.shares:
            raise UsageError("--split train=...: what is not drawn for another split stays in train.")

    def draw(self, key: str) -> str:
        """Returns the split of a key."""
        place = uniform(self.seed, "split", key)
        for name, share in self.shares.items():
            if place < share:
                return name
            place -= share
        return DEFAULT_SPLIT


class ImageGroups:
    """Images that must stay together because a record has several of them: a union-find over their hashes."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def join(self, images: Sequence[ImageInfo]) -> None:
        """Puts the images of one record into one group."""
        if len(images) > 1:
            roots = {self.key(image.sha256) for image in images}
            first = min(roots)  # the smallest hash names a group, whatever the order of joining
            for root in roots:
                self._parent[root] = first

    def key(self, sha256: str) -> str:
        """Returns the name of an image's group; an image that was never joined names its own."""
        root = sha256
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while (parent := self._parent.get(sha256, sha256)) != sha256:
            self._parent[sha256], sha256 = root, parent
        return root


def parse_shares(arguments: Sequence[str]) -> dict[str, float]:
    """Returns `val=0.1` arguments as shares by name.

    Raises:
        UsageError: one is not of this form, or a name comes twice.
    """
    shares: dict[str, float] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not equals or not name or share < 0 or name in shares:
            raise UsageError(f"--split {argument!r} is not NAME=SHARE, or names a split twice.", "For example: --split val=0.1")
        shares[name] = share
    return shares
