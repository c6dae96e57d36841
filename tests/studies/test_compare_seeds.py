"""Several runs under one name are an arm of several training seeds; a model without an encoder reads its feature store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.train.run import train
from sightline.errors import UsageError
from sightline.evaluation.spec import EvalSpec
from sightline.metrics.statistics import difference_over_seeds, interval_over_seeds, mean_by_cluster
from sightline.runtime import storage
from sightline.studies.compare import ComparisonOptions, compare, named_models, question_keys
from sightline.studies.comparison import Scored, difference
from tests.assembly.evaluate.helpers import COUNT, data
from tests.assembly.helpers import run_config
from tests.composites import stock_folder

SEEDS = (3, 5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds each, trained a step, and data."""
    folder = tmp_path_factory.mktemp("seeds")
    data(folder / "set")
    for arm, rate in (("low", "1e-3"), ("high", "0.3")):
        for seed in SEEDS:
            changes = ["runtime.device=cpu", "data.split=val", f"train.seed={seed}", f"train.lr={rate}"]
            config = run_config(path=str(folder / "set"), train={"epochs": None, "steps": 1, "evaluate_samples": 0})
            train(resolve_config(config, None, changes), folder / f"{arm}-s{seed}")
    return folder


def spec_of(place: Path) -> EvalSpec:
    return EvalSpec(data=str(place / "set"), max_new_tokens=4, batch_size=COUNT, resamples=20)


def statistics(out: Path, names: Sequence[str]) -> list[Any]:
    found = []
    for name in names:
        (file,) = (out / "evaluations" / name).glob("*/items.json")
        found.append(mean_by_cluster(storage.read_json(file)["items"]["cider_d"], np.arange(COUNT))[0])
    return found


def test_runs_of_one_name_are_averaged_over_their_seeds(place: Path, tmp_path: Path) -> None:
    models = [f"low={place}/low-s*", f"high={place}/high-s3,{place}/high-s5", f"stock={stock_folder('llava')}"]
    options = ComparisonOptions(controls=(), device="cpu", threads=1)
    told = compare(models, [spec_of(place)], tmp_path / "out", options).to_json()
    rows = {row["name"]: row for row in told["tables"][0]["rows"]}
    assert list(rows) == ["low", "high", "stock"]
    low, high = (statistics(tmp_path / "out", [f"{arm}_{arm}-s{seed}" for seed in SEEDS]) for arm in ("low", "high"))
    (stock,) = statistics(tmp_path / "out", ["stock"])
    for arm, own in (("low", low), ("high", high)):
        wanted = interval_over_seeds(own)
        assert (rows[arm]["value"], rows[arm]["low"], rows[arm]["high"]) == pytest.approx((wanted.value, wanted.low, wanted.high))
        assert (rows[arm]["seeds"], rows[arm]["method"]) == (2, wanted.method)
        assert rows[arm]["per_seed"] == {str(seed): pytest.approx(one.value) for seed, one in zip(SEEDS, own, strict=True)}
    assert rows["stock"]["seeds"] == 1
    assert rows["stock"]["value"] == pytest.approx(stock.value)
    pairs = {(pair["first"], pair["second"]): pair for pair in told["tables"][0]["pairs"]}
    for key, one, other in (
        (("low", "high"), low, high),
        (("low", "stock"), low, [stock] * 2),
        (("high", "stock"), high, [stock] * 2),
    ):
        wanted = difference_over_seeds(one, other)
        assert (pairs[key]["value"], pairs[key]["low"], pairs[key]["seeds"]) == pytest.approx((wanted.value, wanted.low, 2))
    assert [(model["arm"], model["seed"]) for model in told["models"][:4]] == [
        (arm, seed) for arm in ("low", "high") for seed in SEEDS
    ]
    assert list(told["cost"]) == ["low", "high", "stock"]
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "lowest to highest seed" in page


def test_arms_are_named_and_found(place: Path) -> None:
    with pytest.raises(UsageError, match="stands for several runs, which need a name"):
        named_models([f"{place}/low-s*", str(place / "high-s3")])
    with pytest.raises(UsageError, match="no folder fits"):
        named_models([f"low={place}/none-*", str(place / "high-s3")])
    with pytest.raises(UsageError, match="have the same weights"):
        named_models([f"low={place}/low-s3,{place}/low-s3", str(place / "high-s3")])
    alone = named_models([str(place / "low-s3"), f"high={place}/high-s*"])
    assert [(model.name, model.arm, model.seed) for model in alone] == [
        ("low-s3", "low-s3", 0),
        ("high high-s3", "high", 3),
        ("high high-s5", "high", 5),
    ]


def test_a_store_belongs_to_models_without_an_encoder_or_to_the_named_one(place: Path) -> None:
    models = ["low=" + str(place / "low-s3"), "stock=" + str(stock_folder("llava"))]
    found = {model.name: model.features for model in named_models(models, features=("store",))}
    assert found == {"low": None, "stock": None}  # both have an encoder
    found = {model.name: model.features for model in named_models(models, baselines=("neighbours",), features=("low=store",))}
    assert found == {"low": "store", "stock": None, "neighbours": "store"}
    asked = named_models(models, features=("low=store",))[0].asked(spec_of(place), "blind")
    assert (asked.features, asked.control) == ("store", "blind")
    with pytest.raises(UsageError, match="no model is named 'high'; there are low, stock"):
        named_models(models, features=("high=store",))


def test_a_fixed_model_is_compared_with_every_seed() -> None:
    rng = np.random.default_rng(0)
    cluster = np.arange(30)
    arm = Scored((1, 2, 3), rng.normal(size=(3, 30)), cluster)
    fixed = Scored((0,), rng.normal(size=(1, 30)), cluster, is_fixed=True)
    found, turned = difference(arm, fixed), difference(fixed, arm)
    assert found is not None
    assert turned is not None
    assert (found.seeds, found.value) == (3, pytest.approx(arm.values_SN.mean() - fixed.values_SN.mean()))
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert difference(Scored((7,), arm.values_SN[:1], cluster), Scored((0,), fixed.values_SN, cluster)) is None


def test_data_of_one_name_are_two_questions(tmp_path: Path) -> None:
    specs = [EvalSpec(data=str(data(tmp_path / name / "set", first=first))) for name, first in (("a", 0), ("b", 3))]
    keys = list(question_keys(specs).values())
    assert len({*keys}) == 2
    assert all(key.startswith("caption-set-val-") for key in keys)
    assert list(question_keys(specs[:1]).values()) == ["caption-set-val"]
