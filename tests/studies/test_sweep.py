"""Sweeps of tiny models: what is finished is not repeated, what fails is noted, and the evaluations are those of the file."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sightline.assembly.config.schema import DataConfig, ModelConfig, RunConfig, RuntimeConfig, StageConfig, TrainConfig
from sightline.cli import main
from sightline.config import to_yaml
from sightline.errors import ConfigError, DataError
from sightline.models.connectors.align import AlignConfig
from sightline.models.language import LanguageConfig
from sightline.models.vision import VisionConfig
from sightline.runtime import storage
from sightline.studies import sweep as studies
from sightline.studies.spec import Sweep, read_sweep
from tests.builders import decoder_folder, encoder_folder
from tests.data.pictures import picture, prepared, put

FILE = """\
config: base.yaml
arms:
  plain: {}
  broken: {model.connector.kind: h_reducer, model.connector.reach: 3}
  slow: {train.lr: 0.001}
runs:
  - {seeds: [0]}
evaluations:
  - {name: photos, controls: [blind], noise: [1], words: [20], noise_arms: [plain], max_new_tokens: 3, batch_size: 4}
compare: {baseline: plain, metrics: [exact, cider_d]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, the configuration of a tiny run, and a sweep file."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = []
    for n in range(10):
        put(folder / f"in/{n}.png", picture(n, size=(40, 30 + n)))
        captions = [f"A brown dog number {n} runs.", "Two children play."]
        rows.append({"id": f"r{n}", "images": [f"{n}.png"], "captions": captions, "split": "val" if n >= 6 else "train"})
    put(folder / "in/records.jsonl", rows)
    prepared("records", folder / "in", folder / "set")
    base = RunConfig(
        model=ModelConfig(
            vision=VisionConfig(path=str(encoder_folder("siglip"))),
            language=LanguageConfig(path=str(decoder_folder("llama"))),
            connector=AlignConfig(),
        ),
        data=DataConfig(path=str(folder / "set"), max_tokens=64),
        train=TrainConfig(steps=2, batch_size=2, lr=1e-2, evaluate_samples=0, checkpoint_every=0),
        runtime=RuntimeConfig(device="cpu", threads=1),
        stages=(StageConfig(name="align", parts={"connector": "train"}),),
    )
    put(folder / "base.yaml", to_yaml(base))
    put(folder / "sweep.yaml", FILE)
    return folder


def read(place: Path, *arguments: str) -> Sweep:
    return read_sweep(place / "sweep.yaml", arguments)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["sweep", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


class Watched:
    """Counts what a sweep trains and evaluates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[str] = []
        self.asked: list[str] = []
        train, evaluate = studies.train, studies.evaluate

        def training(config: RunConfig, run: Path) -> Any:
            self.trained.append(run.name)
            return train(config, run)

        def evaluating(spec: Any, model: str, *, out: Path, **machine: Any) -> Any:
            self.asked.append(f"{Path(model).name} {out.name}")
            return evaluate(spec, model, out=out, **machine)

        monkeypatch.setattr(studies, "train", training)
        monkeypatch.setattr(studies, "evaluate", evaluating)


@pytest.fixture(scope="module")
def killed(place: Path) -> Path:
    """A sweep that was killed when it had just saved its second good run, after a broken one."""
    command = [sys.executable, "-m", "sightline", "sweep", str(place / "sweep.yaml"), "--out", str(place / "out")]
    environment = os.environ | {"SIGHTLINE_FAULTS": "checkpoint.published=kill@2", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    return place / "out"


def test_killed_it_goes_on_without_repeating_what_is_finished(
    place: Path, killed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = killed / "runs/plain-s0"
    before = {file: file.stat().st_mtime_ns for file in plain.rglob("*") if file.is_file()}
    assert storage.read_json(plain / "sweep.json")["state"] == "done"
    assert not (killed / "runs/slow-s0/sweep.json").exists()
    watched = Watched(monkeypatch)
    code, out, err = call(capsys, place / "sweep.yaml", "--out", killed, "--json")
    told = json.loads(out)
    assert {run["run"]: run["state"] for run in told["runs"]} == {"plain-s0": "done", "broken-s0": "failed", "slow-s0": "done"}
    assert code == 1  # because of the broken one
    assert watched.trained == ["broken-s0", "slow-s0"]  # a failed run is tried again
    assert watched.asked == [f"slow-s0 {key}" for key in ("photos", "photos+blind", "photos+words20")]
    assert {file: file.stat().st_mtime_ns for file in plain.rglob("*") if file.is_file()} == before
    assert "going on from step-2" in err  # the killed run had saved its last step
    watched.trained.clear(), watched.asked.clear()
    assert studies.make_runs([run for run in read(place).runs if run.arm != "broken"], killed)[0].seconds == 0.0
    assert (watched.trained, watched.asked) == ([], [])


def test_a_failing_run_is_noted_with_its_error_and_the_report_says_so(
    place: Path, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = storage.read_json(killed / "runs/broken-s0/sweep.json")
    assert note["state"] == "failed"
    assert "reach=3 does not divide the 4 patches of a row" in note["error"]
    code, out, _ = call(capsys, place / "sweep.yaml", "--out", killed, "--report", "--json")
    told = json.loads(out)
    assert (code, told["planned"], told["failed"], told["runs"]) == (0, 3, 1, [])
    assert told["report"] == str(killed / "report.html")
    for name in ("report.html", "report.md"):
        assert "broken-s0 failed: model.connector.reach=3 does not divide" in (killed / name).read_text("utf-8")
    assert "| plain |" in (killed / "report.md").read_text("utf-8")
    assert all((killed / f"photos-{name}.svg").exists() for name in ("exact", "cider_d", "cider_d-feature_noise"))


def test_each_evaluation_is_stored_with_predictions_scores_and_items(killed: Path) -> None:
    folder = killed / "runs/plain-s0/eval"
    assert sorted(item.name for item in folder.iterdir()) == ["photos", "photos+blind", "photos+noise1", "photos+words20"]
    for item in folder.iterdir():
        stored, scores = storage.read_json(item / "items.json"), storage.read_json(item / "scores.json")
        assert stored["records"] == [line["id"] for line in storage.read_json_lines(item / "predictions.jsonl")]
        assert len(set(stored["image"])) == 4
        assert stored["values"] == {name: score["value"] for name, score in scores["scores"].items()}
        assert all(len(values) == 4 for values in stored["items"].values())
    settings = {item.name: storage.read_json(item / "scores.json")["settings"] for item in folder.iterdir()}
    assert [settings[f"photos{kind}"].get("noise") for kind in ("", "+noise1")] == [None, 1.0]
    assert settings["photos+words20"]["words"] == [20, "train"]
    assert settings["photos+blind"]["control"] == "blind"


def test_damaged_weights_or_a_new_question_are_not_finished(place: Path, killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = read(place)
    assert studies.is_finished(sweep.runs[0], killed)
    put(place / "more.yaml", FILE.replace("words: [20]", "words: [20, 30]"))
    asked = read_sweep(place / "more.yaml").runs[0]
    assert not studies.is_finished(asked, killed)
    watched = Watched(monkeypatch)
    assert studies.make_runs([asked], killed)[0].state == "done"
    assert watched.asked == ["plain-s0 photos+words30"]  # the others are there, and the run is trained already
    weights = next((killed / "runs/plain-s0/checkpoints/step-2/model").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not studies.is_finished(asked, killed)
    weights.write_bytes(whole)
    assert studies.is_finished(asked, killed)
    for name in ("items.json", "scores.json"):
        stored = killed / "runs/plain-s0/eval/photos" / name
        whole = stored.read_bytes()
        stored.write_bytes(whole[:40])
        assert not studies.is_finished(asked, killed)
        watched.asked.clear()
        assert studies.make_runs([asked], killed)[0].state == "done"
        assert watched.asked == ["plain-s0 photos"]
        assert stored.read_bytes() == whole


def test_a_run_that_an_earlier_version_finished_is_finished(place: Path, killed: Path) -> None:
    """It noted eleven options of an evaluation; those that it lacked have their defaults."""
    run = read(place).runs[0]
    note = studies.folder_of(killed, run) / studies.STATE
    stored = storage.read_json(note)
    noted = ("task", "data", "split", "control", "batch_size", "limit", "prompt", "max_new_tokens", "features", "noise", "words")
    old = {key: {name: asked[name] for name in noted} for key, asked in stored["asked"].items()}
    storage.write_json(note, stored | {"asked": old})
    assert studies.is_finished(run, killed)
    old["photos+noise1"]["noise"] = 2.0
    storage.write_json(note, stored | {"asked": old})
    assert not studies.is_finished(run, killed)
    storage.write_json(note, stored)


def test_other_settings_in_the_same_folder_are_refused_before_anything_is_made(place: Path, killed: Path) -> None:
    run = read(place, "train.steps=3").runs[0]
    with pytest.raises(ConfigError, match=r"plain-s0 was started with other settings \(train.steps: 2 -> 3\)"):
        studies.make_runs([run], killed)
    assert studies.is_finished(read(place, "runtime.threads=2").runs[0], killed)  # harmless


def test_a_run_that_another_process_makes_is_left_to_it(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read(place).runs[0]
    folder = studies.folder_of(tmp_path, run)
    folder.mkdir(parents=True)
    stat = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
    put(folder / studies.LOCK, {"pid": 1, "host": os.uname().nodename, "start": stat[19]})
    outcome = studies.make_run(run, tmp_path)
    assert (outcome.state, "in use by process 1" in outcome.error) == ("elsewhere", True)
    assert not (folder / studies.STATE).exists()


def test_a_wrong_path_is_told_before_the_first_run(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        studies.check_data(read(place, "data.path=nowhere").runs)
    code, _, err = call(capsys, place / "sweep.yaml", "--out", tmp_path / "out", "--set", "data.split=trian")
    assert (code, "has no split 'trian'" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_runs_are_listed_without_making_any(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, place / "sweep.yaml", "--list", "--only", "plain*")
    assert (code, out) == (0, "plain-s0  (photos, photos+blind, photos+noise1, photos+words20)\n")


def test_every_listed_name_is_a_job_that_makes_this_run_alone(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []
    monkeypatch.setattr(studies, "make_run", lambda run, out: made.append(run.name) or studies.Outcome(run.name, "done"))
    code, out, _ = call(capsys, place / "sweep.yaml", "--list", "--json")
    names = [run["run"] for run in json.loads(out)["runs"]]
    assert (code, names) == (0, [run.name for run in read(place).runs])
    for name in reversed(names):
        code, out, _ = call(capsys, place / "sweep.yaml", "--out", tmp_path, "--only", name, "--no-report", "--json")
        assert (code, json.loads(out)["runs"]) == (0, [{"run": name, "state": "done", "error": "", "seconds": 0.0}])
    assert made == names[::-1]
