"""Comparisons of runs, on predictions scored by hand: means, paired differences, losses, and bootstraps over images."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from math import factorial, prod
from pathlib import Path

import numpy as np
import pytest

from sightline.metrics.statistics import bootstrap, interval_json, mean_by_cluster
from sightline.runtime import storage
from sightline.studies.comparison import Items, Scored, common_records, difference, lost, scored
from sightline.studies.spec import read_sweep
from sightline.studies.sweep import folder_of
from sightline.studies.sweep_report import write_report
from tests.data.pictures import put

FILE = """\
title: Hand made
recipe: flickr8k_mobilenet_v2
settings: {data.path: here}
arms:
  ce: {}
  cal: {objective.kind: cal}
runs:
  - {seeds: [0, 1], grid: {data.noise: [0.0, 0.3]}}
evaluations:
  - {name: photos, controls: [blind]}
compare: {baseline: ce, metrics: [cider_d], reference: {data.noise: 0.0}}
"""


def items(values: Sequence[float], pictures: Sequence[str] | None = None, records: Sequence[str] | None = None) -> Items:
    names = tuple(records or [f"r{n}" for n in range(len(values))])
    return Items(names, tuple(pictures or names), {"cider_d": list(values)})


def place(by_seed: Mapping[int, Items]) -> Scored:
    records, cluster = common_records(list(by_seed.values()))
    found = scored(by_seed, "cider_d", records, cluster)
    assert found is not None
    return found


def exact_quantiles(sums: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """The 2.5 % and 97.5 % points of the mean over drawn clusters, from every possible draw and its probability."""
    count = len(sums)
    outcomes: Counter[float] = Counter()
    for draws in itertools.product(range(count + 1), repeat=count):
        if sum(draws) == count:
            value = np.dot(draws, sums) / np.dot(draws, sizes)
            outcomes[float(value)] += factorial(count) / prod(map(factorial, draws)) / count**count
    assert sum(outcomes.values()) == pytest.approx(1)
    ordered, mass = sorted(outcomes), 0.0
    points = []
    for value in ordered:
        mass += outcomes[value]
        points.append((mass, value))
    return [next(value for mass, value in points if mass > level) for level in (0.025, 0.975)]


def test_the_bootstrap_draws_images_with_all_their_records() -> None:
    values, cluster = [1.0, 2.0, 6.0, 0.0, 10.0], [0, 0, 0, 1, 2]
    statistic, count = mean_by_cluster(values, cluster)
    assert (count, statistic(np.array([[1, 1, 1], [2, 0, 1]])).tolist()) == (3, [19 / 5, (18 + 10) / 7])
    found = bootstrap(statistic, count, resamples=20_000)
    assert [found.low, found.high] == pytest.approx(exact_quantiles([9, 0, 10], [3, 1, 1]))
    alone = bootstrap(mean_by_cluster(values, range(5))[0], 5, resamples=20_000)
    assert [alone.low, alone.high] == pytest.approx(exact_quantiles(values, [1] * 5), abs=0.21)  # the next value


def test_scores_are_averaged_over_seeds_and_records_that_all_have() -> None:
    first = items([1, 2, 3, 9], records=["a", "b", "c", "x"], pictures=["p", "p", "q", "z"])
    second = items([5, 4, 3], records=["c", "b", "a"], pictures=["q", "p", "p"])
    found = place({4: first, 1: second})
    assert found.seeds == (1, 4)
    assert found.values_SN.tolist() == [[3, 4, 5], [1, 2, 3]]
    assert found.cluster_N.tolist() == [0, 0, 1]
    assert found.per_seed == {1: 4.0, 4: 2.0}
    assert found.interval().value == 3.0


def test_a_difference_is_paired_by_record_and_by_seed() -> None:
    base = place({0: items([0, 5, 10]), 1: items([2, 7, 12]), 2: items([100, 100, 100])})
    other = place({0: items([1, 6, 11]), 1: items([3, 8, 13])})
    found = difference(other, base)
    assert found is not None
    assert [found.value, found.low, found.high] == pytest.approx([1.0, 1.0, 1.0])  # seed 2 of the baseline has no partner
    assert found.p < 0.002
    assert difference(other, place({5: items([1, 1, 1])})) is None


def test_an_interval_over_seeds_names_its_method_and_covers_them() -> None:
    several, one = place({0: items([1, 2, 3]), 1: items([5, 6, 7])}), place({0: items([1, 2, 3])})
    found = several.interval()
    # seeds differ by 4 and items by nothing else: variance 8 / 2 from seeds, 1 / 3 from items, their quantiles 12.706 and 4.303
    half = (4 * 12.7062 + 4.3027 / 3) / np.sqrt(4 + 1 / 3)
    assert [found.value, found.low, found.high] == pytest.approx([4, 4 - half, 4 + half], rel=1e-4)
    told = interval_json(found)
    assert list(told) == ["value", "low", "high", "n", "seeds", "method"]
    assert (told["n"], told["seeds"], told["method"]) == (3, 2, "seeds_and_items_t")
    assert (one.interval().seeds, one.interval().method) == (1, "items_bootstrap")


def test_a_difference_of_arms_with_other_seeds_is_not_paired() -> None:
    base = place({0: items([0, 5, 10]), 1: items([2, 7, 12]), 2: items([1, 6, 11])})
    other = place({2: items([1, 6, 11]), 5: items([3, 8, 13])})  # one seed in common
    found = difference(other, base)
    assert found is not None
    # items differ by nothing once the seeds are averaged: 2 / 2 from the seeds of one arm, 1 / 3 from those of the other
    half = (1 * 12.7062 + 4.3027 / 3) / np.sqrt(1 + 1 / 3)
    assert [found.value, found.low, found.high] == pytest.approx([1, 1 - half, 1 + half], rel=1e-4)
    assert (found.n, found.seeds, found.method) == (3, 2, "seeds_and_items_t")
    single = difference(place({0: items([1, 6, 11])}), base)
    assert single is not None
    assert (single.value, single.seeds, single.method) == (1.0, 1, "items_bootstrap")


def test_losses_are_compared_with_the_baselines() -> None:
    clean, noisy = place({0: items([5, 6, 7])}), place({0: items([3, 4, 5])})
    mine = place({0: items([5, 6, 7])}), place({0: items([4, 5, 6])})
    found = lost(*mine, (clean, noisy))
    assert found is not None
    assert found.ratio is not None
    assert found.less is not None
    assert (found.lost.value, found.ratio.value, found.ratio.low, found.ratio.high, found.less.value) == (1.0, 0.5, 0.5, 0.5, 1.0)
    unclear = place({0: items([5, 6, 7])}), place({0: items([9, 4, 5])})
    assert lost(*mine, unclear).ratio is None  # type: ignore[union-attr]


def test_the_report_holds_the_numbers_of_the_stored_items(tmp_path: Path) -> None:
    put(tmp_path / "sweep.yaml", FILE)
    sweep = read_sweep(tmp_path / "sweep.yaml")
    values = {  # arm, noise -> value of each of four records of three images at seed 0; seed 1 has 0.2 more
        ("ce", 0.0): [1.0, 1.0, 2.0, 2.0],
        ("ce", 0.3): [0.5, 0.5, 1.5, 1.5],
        ("cal", 0.0): [1.0, 1.0, 2.0, 2.0],
        ("cal", 0.3): [0.9, 0.9, 1.9, 1.9],
    }
    for run in sweep.runs[:-1]:  # the last one is not done
        folder = folder_of(tmp_path, run)
        scores = [value + 0.2 * run.seed for value in values[run.arm, run.cell["data.noise"]]]  # type: ignore[index]
        for key, numbers in (("photos", scores), ("photos+blind", [0.1] * 4)):
            (folder / "eval" / key).mkdir(parents=True)
            stored = {"records": list("abcd"), "image": list("ppqr"), "items": {"cider_d": numbers}}
            storage.write_json(folder / "eval" / key / "items.json", stored)
        storage.write_json(folder / "sweep.json", {"state": "done"})
    told = write_report(sweep, tmp_path)
    assert (told["done"], told["planned"], told["failed"]) == (7, 8, 0)
    report = storage.read_json(tmp_path / "report.json")
    assert report["missing"] == ["cal-noise0.3-s1"]
    (table,) = report["tables"]
    assert (table["records"], table["images"]) == (4, 3)
    rows = {(row["arm"], row["cell"]["data.noise"]): row for row in table["rows"]}
    assert rows["ce", 0.0]["value"] == pytest.approx(1.6)
    assert rows["ce", 0.0]["per_seed"] == {"0": pytest.approx(1.5), "1": pytest.approx(1.7)}
    assert rows["ce", 0.0]["minus_baseline"] is None
    minus = rows["cal", 0.3]["minus_baseline"]  # of seed 0 alone, which both have
    assert [minus[name] for name in ("value", "low", "high")] == pytest.approx([0.4, 0.4, 0.4])
    assert rows["cal", 0.3]["others"]["blind"]["value"] == pytest.approx(0.1)
    losses = {loss["arm"]: loss for loss in table["losses"]}
    assert losses["ce"]["lost"]["value"] == pytest.approx(0.5)
    assert losses["cal"]["lost"]["value"] == pytest.approx(0.1)
    assert [losses["cal"]["ratio"][name] for name in ("value", "low", "high")] == pytest.approx([0.2, 0.2, 0.2])
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "| model | CIDEr-D \u00d7 100 [95 %] | wins / pairs | seeds | lowest to highest seed | does it look? | blind |" in text
    assert "| cal noise=0.3 | 140.0 [90.0, 190.0] | 0 / 1 | 1 |" in text
    assert "| cal noise=0.3 | ce noise=0.3 | +40.0 [+40.0, +40.0] | 0.001 | 0.002 | 4 | 0 | 0 |" in text
    assert "| cal noise=0.3 | 10.0 [10.0, 10.0] | 0.200 [0.200, 0.200] | 40.0 [40.0, 40.0] | 0.001 |" in text
    assert (tmp_path / "photos-cider_d-noise.svg").read_text("utf-8").count("<circle") == 4
