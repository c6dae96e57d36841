"""Splits by hash: the share is kept, and nothing but seed and key decides."""

import math
import random

import pytest

from sightline.data.prepare.splitting import ImageGroups, SplitRule, parse_shares
from sightline.errors import UsageError
from sightline.types import ImageInfo


def test_shares_are_met_within_four_standard_deviations() -> None:
    rule = SplitRule({"val": 0.1, "test": 0.05}, seed=3)
    drawn = [rule.draw(f"key {index}") for index in range(20_000)]
    for name, share in [("val", 0.1), ("test", 0.05), ("train", 0.85)]:
        deviation = math.sqrt(20_000 * share * (1 - share))
        assert abs(drawn.count(name) - 20_000 * share) < 4 * deviation


def test_a_key_goes_where_it_went_before_and_elsewhere_with_another_seed() -> None:
    keys = [f"{index}" for index in range(500)]
    first = {key: SplitRule({"val": 0.5}, seed=1).draw(key) for key in keys}
    random.shuffle(keys)
    assert all(SplitRule({"val": 0.5}, seed=1).draw(key) == first[key] for key in keys)
    assert any(SplitRule({"val": 0.5}, seed=2).draw(key) != first[key] for key in keys)


def test_a_larger_share_takes_the_smaller_one_along() -> None:
    few, many = SplitRule({"val": 0.1}), SplitRule({"val": 0.3})
    assert all(many.draw(str(key)) == "val" for key in range(2000) if few.draw(str(key)) == "val")


def test_groups_do_not_depend_on_the_order_of_joining() -> None:
    pairs = [(index, index + 1) for index in range(0, 60) if index % 7]
    orders = [pairs, pairs[::-1], random.Random(1).sample(pairs, len(pairs))]
    keys = []
    for order in orders:
        groups = ImageGroups()
        for pair in order:
            groups.join([ImageInfo(f"{number:064x}", 1, 1) for number in pair])
        keys.append([groups.key(f"{number:064x}") for number in range(61)])
    assert keys[0] == keys[1] == keys[2]
    assert keys[0][1] == keys[0][7] != keys[0][8]


@pytest.mark.parametrize("arguments", [["val"], ["=0.1"], ["val=x"], ["val=-1"], ["val=0.1", "val=0.2"]])
def test_arguments_of_another_form_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="--split"):
        parse_shares(arguments)


@pytest.mark.parametrize("shares", [{"val": 1.0}, {"val": 0.0}, {"val": 0.6, "test": 0.5}, {"train": 0.5}, {"val": math.nan}])
def test_shares_that_leave_nothing_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--split"):
        SplitRule(shares)
