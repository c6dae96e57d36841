"""What the check says of a run's stages is what the run would do."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.epochs import batch_rules
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.config.schema import RunConfig, SourceConfig, StageConfig
from sightline.assembly.inspect.check import CheckRequest, check_data, judge
from sightline.assembly.inspect.rows import folders_of, training_report, with_folders
from sightline.assembly.model.blueprint import config_blueprint
from sightline.assembly.model.build import Processing, build_from_config
from sightline.assembly.train.corpus import build_corpus
from sightline.data.batches.loader import Loader
from sightline.data.check import CheckOptions, check
from sightline.data.check.report import StageFigures, TrainingFigures
from sightline.data.check.rows import Left
from sightline.errors import ConfigError, DataError, SkipLimitError
from tests.assembly.helpers import run_config
from tests.data.check.planted import folder, png, question, record, scene, stored

HERE = CheckOptions(workers=0, near_bits=None)


def pictures(count: int) -> dict[str, bytes]:
    return {f"{index}.png": png(scene(index, 64)) for index in range(count)}


def data(path: Path, count: int = 12) -> Path:
    rows = [
        record(f"r{n}", f"{n % 5}.png", captions=[f"image {n}, the {k}. caption" for k in range(1 + n % 4)]) for n in range(count)
    ]
    rows += [question(f"q{n}", "4.png", f"question {n}?", ["yes"]) for n in range(4)]
    rows += [record("v", "0.png", "val")]
    return folder(path, rows, pictures(5))


def report(config: RunConfig, *folders: Path) -> dict[str, Any]:
    return asdict(training_report(check(folders, HERE), config_blueprint(config), lambda place, left: None))


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"pack": False},
        {"share_prefix": False},
        {"captions": "first", "limit": 7},
        {"pack": False, "share_prefix": False, "sort_by_length": False},
    ],
)
def test_steps_and_rows_of_an_epoch_are_those_of_the_loader(tmp_path: Path, section: dict[str, Any]) -> None:
    config = run_config(path=str(data(tmp_path / "data")), **section)
    (stage,) = report(config, tmp_path / "data")["stages"]
    made = build_from_config(config, Processing(max_tokens=120), None)
    plan = stage_plan(config, 0)
    corpus = build_corpus(made, plan.data, None)
    loader = Loader(corpus, batch_rules(plan), made.pad_id)
    rows = loader.plan.rows(0)
    assert stage["epoch"]["samples"] == sum(map(len, rows))
    assert stage["epoch"]["rows"] == len(rows)
    assert stage["epoch"]["tokens"] == sum(int(corpus.tokens[unit]) for row in rows for unit in row)
    assert stage["epoch"]["steps_per_epoch"] == loader.steps_in_epoch(0)
    assert stage["steps"] == 3 * loader.steps_in_epoch(0)


def test_records_with_a_repeated_id_or_a_damaged_image_count_as_they_do_in_training(tmp_path: Path) -> None:
    """Training keeps the former, and skips the latter at the step that needs the image."""
    path = data(tmp_path / "data")
    text = (path / "records.jsonl").read_text("utf-8").replace('"r11"', '"r10"')
    (path / "records.jsonl").write_text(text, "utf-8")
    image = sorted((path / "images").rglob("*.png"))[0]
    image.write_bytes(image.read_bytes()[:60])
    config = run_config(path=str(path))
    checked = check([path], HERE)
    assert checked.bad.counts["duplicate_id"] == 1
    assert checked.num_bad > 1
    (stage,) = asdict(training_report(checked, config_blueprint(config), lambda place, left: None))["stages"]
    corpus = build_corpus(build_from_config(config, Processing(max_tokens=120), None), stage_plan(config, 0).data, None)
    assert stage["data"]["samples"] == len(corpus.tokens)
    assert stage["data"]["tokens"] == int(corpus.tokens.sum())


def test_label_noise_changes_the_rows_as_it_does_in_training(tmp_path: Path) -> None:
    rows = [record(f"r{n}", f"{n}.png", captions=["word " * (1 + n)]) for n in range(9)]
    path = folder(tmp_path / "data", rows, pictures(9))
    seen = set()
    for seed in range(4):
        config = run_config(path=str(path), noise=0.5, noise_seed=seed, limit=5)
        (stage,) = report(config, path)["stages"]
        made = build_from_config(config, Processing(max_tokens=120), None)
        corpus = build_corpus(made, stage_plan(config, 0).data, None)
        assert stage["data"]["tokens"] == int(corpus.tokens.sum())
        seen.add(stage["data"]["tokens"])
    assert len(seen) > 1


def test_a_mixture_draws_as_training_draws(tmp_path: Path) -> None:
    first, second = data(tmp_path / "a"), folder(tmp_path / "b", [record(f"x{n}", "0.png") for n in range(6)], pictures(1))
    sources = (SourceConfig(path=str(first), weight=1.0), SourceConfig(path=str(second), weight=3.0, prompt="What is it?"))
    config = run_config(mixture=sources)
    assert folders_of(config) == (first, second)
    told = report(config, first, second)
    made = build_from_config(config, Processing(max_tokens=120), None)
    plan = stage_plan(config, 0)
    corpus = build_corpus(made, plan.data, None)
    loader = Loader(corpus, batch_rules(plan), made.pad_id)
    (stage,) = told["stages"]
    assert stage["epoch"]["rows"] == len(loader.plan.rows(0))
    assert stage["epoch"]["samples"] == sum(source.samples_per_epoch for source in corpus.sources)
    assert set(told["rows"]) == {"a:train", "a:val", "b:train"}
    assert told["rows"]["b:train"]["tokens_shared"] == corpus.sources[1].table.tokens.sum()


def test_each_stage_is_looked_at_and_rows_are_told_again_only_where_they_differ(tmp_path: Path) -> None:
    stages = (
        StageConfig(name="align", parts={"connector": "train"}),
        StageConfig(name="same", parts={"connector": "train"}, train={"batch_size": 4}),
        StageConfig(name="prompted", parts={"connector": "train"}, data={"prompt": "Describe the image."}, train={"steps": 7}),
    )
    told = report(run_config(stages, path=str(data(tmp_path / "data"))), tmp_path / "data")
    assert set(told["rows"]) == {"train", "val", "train (prompted)", "val (prompted)"}
    assert told["rows"]["train (prompted)"]["tokens"]["mean"] > told["rows"]["train"]["tokens"]["mean"] + 3
    first, second, third = told["stages"]
    assert first["epoch"]["rows"] == second["epoch"]["rows"] < third["epoch"]["rows"]
    assert second["epoch"]["steps_per_epoch"] == -(-second["epoch"]["rows"] // 4)
    assert (third["steps"], third["epochs"]) == (7, 7 / third["epoch"]["steps_per_epoch"])


def test_folders_take_the_place_of_the_configurations_data(tmp_path: Path) -> None:
    stage = StageConfig(name="align", parts={"connector": "train"}, data={"path": "elsewhere", "prompt": "x"})
    config = run_config((stage,), path="nowhere")
    one = with_folders(config, [tmp_path])
    assert folders_of(one) == (tmp_path,)
    assert one.stages[0].data == {"prompt": "x"}
    several = with_folders(config, [tmp_path / "a", tmp_path / "b"])
    assert folders_of(several) == (tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        folders_of(run_config())


def test_a_split_that_is_not_there_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    (stage,) = report(run_config(path=str(data(tmp_path / "data")), split="nothing"), tmp_path / "data")["stages"]
    assert stage["epoch"] is None
    assert "has no split 'nothing'" in stage["why"]


def test_conversations_that_are_left_out_are_told_and_refuse_as_training_would(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", [record("long", "0.png", captions=["word " * 90, "fine"]), record("b", "1.png")], pictures(2))
    config = run_config(path=str(path))
    told: list[tuple[str, Left]] = []
    found = training_report(check([path], HERE), config_blueprint(config), lambda place, left: told.append((place, left)))
    assert [(place, left.id, left.conversation, left.reason) for place, left in told] == [("train", "long", 0, "too_long")]
    (stage,) = found.stages
    assert stage.refused.startswith(
        "1 of 3 conversations of split 'train' cannot be trained on (too_long 1), data.max_skipped allows a share of 0.01."
    )
    made = build_from_config(config, Processing(max_tokens=120), None)
    with pytest.raises(SkipLimitError) as caught:
        build_corpus(made, stage_plan(config, 0).data, None)
    assert str(caught.value) == stage.refused


def request(path: Path, **changes: Any) -> CheckRequest:
    return CheckRequest(**{"folders": (path,), "options": HERE, **changes})


def test_the_budget_decides_over_records_conversations_and_changed_files(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    stored(path, 0).write_bytes(b"broken")
    told = check_data(request(path))
    bad = told.checked.num_bad
    judge(told, bad / told.checked.input)
    with pytest.raises(SkipLimitError, match=f"{bad} of 17 records cannot be used, --max-skipped allows a share of 0"):
        judge(told, 0.0)
    with pytest.raises(DataError, match=r"records\.jsonl is not what"):
        judge(replace(told, checked=replace(told.checked, damaged_files=("records.jsonl is not what was written",))), 1.0)
    refused = StageFigures("align", [], True, 512, 8, None, 1.0, refused="too many")
    with pytest.raises(SkipLimitError, match="stage align: too many"):
        judge(replace(told, training=TrainingFigures({}, {}, [refused])), 1.0)


def test_records_that_cannot_be_read_do_not_stop_the_rows(tmp_path: Path) -> None:
    path = data(tmp_path / "data")
    lines = (path / "records.jsonl").read_bytes()
    (path / "records.jsonl").write_bytes(lines.replace(b'"image 0, the 0. caption"', b'                        "'))
    told = check_data(request(path, describe=lambda folders: config_blueprint(run_config(path=str(path))))).to_json()
    assert told["skipped"] == {"record_damaged": 1}
    assert told["training"]["rows"]["train"]["kept"] == sum(1 + n % 4 for n in range(1, 12)) + 4
