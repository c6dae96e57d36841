"""Sweep files: which runs they mean, in which order, and what a wrong one is told."""

import sysconfig
from pathlib import Path

import pytest

from sightline.errors import ConfigError, UsageError
from sightline.studies.spec import Sweep, read_sweep, sweep_file

BASE = """\
recipe: flickr8k_mobilenet_v2
settings: {train.batch_size: 2, data.path: here}
arms:
  mlp: {model.connector.kind: mlp}
  align: {model.connector.kind: align, model.connector.initial_gain: 1.5}
runs:
  - {seeds: [0, 1]}
evaluations:
  - {name: photos, controls: [blind], noise: [0.5, 1], words: [10]}
"""


def read(path: Path, text: str = BASE, *arguments: str) -> Sweep:
    file = path / "sweep.yaml"
    file.write_text(text, "utf-8")
    return read_sweep(file, arguments)


def names(sweep: Sweep) -> list[str]:
    return [run.name for run in sweep.runs]


def test_the_first_seed_of_everything_comes_first_and_blocks_keep_their_order(tmp_path: Path) -> None:
    blocks = """\
runs:
  - {seeds: [0, 1], grid: {data.noise: [0.0, 0.3]}}
  - {arms: [align], grid: {stages.instruct.train.lr: [0.01]}, seeds: [7]}
"""
    sweep = read(tmp_path, BASE.replace("runs:\n  - {seeds: [0, 1]}\n", blocks))
    cells = ["noise0.0", "noise0.3"]
    first = [f"{arm}-{cell}-s{seed}" for seed in (0, 1) for cell in cells for arm in ("mlp", "align")]
    assert names(sweep) == [*first, "align-lr0.01-s7"]
    assert [(run.config.train.seed, run.config.data.noise) for run in sweep.runs[:4]] == [(0, 0.0), (0, 0.0), (0, 0.3), (0, 0.3)]
    assert sweep.runs[-1].config.stages[1].train["lr"] == 0.01
    assert sweep.runs[1].config.model.connector.model_dump()["initial_gain"] == 1.5


def test_every_arm_is_asked_what_it_can_answer_with_the_plain_evaluation_and_its_controls_first(tmp_path: Path) -> None:
    sweep = read(tmp_path)
    asked = {run.name: [asked.key for asked in run.asked] for run in sweep.runs}
    assert asked["mlp-s0"] == ["photos", "photos+blind", "photos+noise0.5", "photos+noise1"]
    assert asked["align-s0"] == [*asked["mlp-s0"], "photos+words10"]
    some = read(tmp_path, BASE.replace("words: [10]", "noise_arms: [al*], arms: ['*l*']"))
    assert [asked.key for asked in some.runs[0].asked] == ["photos", "photos+blind"]


def test_arguments_lie_over_the_file_and_under_the_arms(tmp_path: Path) -> None:
    run = read(tmp_path, BASE, "data.path=there", "model.connector.kind=vet", "train.batch_size=9").runs[0]
    assert (run.config.data.path, run.config.train.batch_size, run.config.model.connector.kind) == ("there", 9, "mlp")


def test_a_run_that_two_blocks_name_is_made_once_and_null_leaves_a_setting_alone(tmp_path: Path) -> None:
    text = BASE.replace("  - {seeds: [0, 1]}\n", "  - {seeds: [0]}\n  - {seeds: [0, 1], grid: {data.limit: [null, 5]}}\n")
    assert names(read(tmp_path, text)) == ["mlp-s0", "align-s0", "mlp-limit5-s0", "align-limit5-s0"] + [
        f"{arm}{cell}-s1" for cell in ("", "-limit5") for arm in ("mlp", "align")
    ]


def test_two_different_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    text = BASE.replace("  - {seeds: [0, 1]}\n", "  - {grid: {data.limit: [5]}}\n  - {grid: {stages.instruct.data.limit: [5]}}\n")
    with pytest.raises(ConfigError, match="two runs are named 'mlp-limit5-s0' and differ"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("runs:", "runz:", r"sweep.yaml:6: runz: unknown key; did you mean 'runs'\?"),
        ("seeds: [0, 1]", "seed: [0, 1]", r"sweep.yaml:7: runs.0.seed: unknown key; did you mean 'seeds'\?"),
        (
            "controls: [blind]",
            "controls: [blond]",
            r"sweep.yaml:9: evaluations.0.controls.0: unknown value \"blond\"; did you mean 'blind'",
        ),
        ("{seeds", "{arms: [mpl], seeds", "there is no arm 'mpl'; there are mlp, align"),
        ("evaluations:", "compare: {baseline: linear}\nevaluations:", "compare.baseline: there is no arm 'linear'"),
        ("  mlp: {", "  m-lp: {", "arm 'm-lp': a name has letters"),
        ("recipe: flickr8k_mobilenet_v2\n", "", "give either 'recipe' or 'config'"),
        ("{seeds: [0, 1]}", "{grid: {data.noise: []}}", "a key of the grid has no value"),
        (
            "initial_gain",
            "inital_gain",
            r"run 'align-s0': .*sweep.yaml:5: model.connector.inital_gain: .*did you mean 'initial_gain'\?",
        ),
        ("train.batch_size: 2", "train.batch_size: two", r"run 'mlp-s0': .*sweep.yaml:2: train.batch_size"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, BASE.replace(old, new))


def test_runs_are_chosen_by_pattern_and_number(tmp_path: Path) -> None:
    sweep = read(tmp_path)
    assert [run.name for run in sweep.chosen("*-s1,mlp*", None)] == ["mlp-s0", "mlp-s1", "align-s1"]
    assert [run.name for run in sweep.chosen(None, 1)] == ["mlp-s0"]
    with pytest.raises(UsageError, match=r"no run of .* is named 'x\*'. For example 'mlp-s0'"):
        sweep.chosen("x*", None)


@pytest.mark.parametrize("name", ["cal", "connectors", "connectors_scenes"])
def test_the_shipped_files_are_valid(name: str) -> None:
    file = Path(__file__).parents[2] / "studies" / f"{name}.yaml"
    sweep = read_sweep(file, ["data.path=here"])
    seeds = {arm: {run.seed for run in sweep.runs if run.arm == arm} for arm in sweep.config.arms}
    assert all(len(of) >= 3 for of in seeds.values()), seeds
    assert sweep.runs[0].arm == sweep.config.compare.baseline


def test_sweeps_that_come_with_the_package_are_found_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path(__file__).parents[2] / "studies"
    assert sweep_file(Path("studies/connectors.yaml")) == own / "connectors.yaml"
    assert sweep_file(Path("connectors.yaml")) == own / "connectors.yaml"
    for other in ("studies/none.yaml", "other/connectors.yaml", "../studies/connectors.yaml"):
        assert sweep_file(Path(other)) == Path(other)
    (tmp_path / "connectors.yaml").write_text("{}", "utf-8")
    assert sweep_file(Path("connectors.yaml")) == Path("connectors.yaml")
    installed = tmp_path / "share" / "sightline" / "studies"
    installed.mkdir(parents=True)
    (installed / "cal.yaml").write_text("{}", "utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert sweep_file(Path("studies/cal.yaml")) == installed / "cal.yaml"
