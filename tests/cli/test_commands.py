"""The command as a whole: every verb explains itself without torch, every fault has its exit code, `--json` is one object."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from sightline.assembly.config.schema import RunConfig
from sightline.cli import main
from sightline.config import to_yaml
from sightline.recipes import RECIPES
from sightline.runtime import doctor
from tests.assembly.helpers import run_config
from tests.cli.helpers import VERBS, call
from tests.data.check.planted import folder, png, record, scene

ROOT = Path(__file__).parents[2]


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The one object that a command prints with `--json`."""
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    return json.loads(out)


def test_the_verbs_are_there() -> None:
    words = {" ".join(verb) for verb in VERBS}
    wanted = {"demo", "doctor", "eval", "generate", "probe", "recipes", "recipes show", "score", "sweep", "train"}
    assert wanted | {"data", "data prepare", "data check", "data preview", "data features"} <= words


def test_help_of_every_verb_is_complete_and_loads_no_torch() -> None:
    code = f"""
import contextlib, io, json, sys
from sightline.cli import main
told = {{}}
for words in {VERBS!r}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    told[" ".join(words)] = out.getvalue()
heavy = [name for name in ("torch", "transformers", "PIL", "numpy") if name in sys.modules]
print(json.dumps({{"told": told, "heavy": heavy}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True, env=None)
    said = json.loads(done.stdout)
    assert said["heavy"] == []
    for words, text in said["told"].items():
        assert "Usage:" in text, words
        assert "--help" in text
        summary = re.sub(r"\s+", " ", text.partition("Usage:")[2])
        assert len(summary) > 150, words
    assert done.stderr == ""


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys)
    assert code in (0, 2)
    assert "Train, measure and compare" in out + err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dance"], "No such command 'dance'"),
        (["train"], "train needs --out"),
        (["train", "--out", "RUN"], "train needs a recipe or --config"),
        (["train", "scenes_tinny", "--out", "RUN"], "Did you mean 'scenes_tiny'?"),
        (["train", "scenes_tiny", "tinyvlm", "--out", "RUN"], "takes one recipe"),
        (["train", "scenes_tiny", "trian.steps=3", "--out", "RUN"], "did you mean 'train'?"),
        (["train", "scenes_tiny", "--out", "RUN"], "data.path is not set"),
        (["train", "scenes_tiny", "data.path=NONE", "--out", "RUN"], "NONE"),
        (["train", "--config", "NONE/c.yaml", "--out", "RUN"], "NONE/c.yaml"),
        (["recipes", "show", "nothing"], "no recipe 'nothing'"),
        (["eval", "NONE", "--task", "caption", "--data", "NONE"], "NONE"),
        (["eval", "NONE", "--task", "caption"], "eval needs --data, or --config"),
        (
            ["eval", "NONE", "--task", "caption", "--data", "D", "--control", "deaf"],
            'unknown value "deaf"; known are shuffled, blind',
        ),
        (["generate", "NONE", "--top-p", "2"], "--top-p"),
        (["generate", "NONE"], "NONE"),
        (["data", "prepare", "NONE", "--format", "records", "--out", "RUN"], "NONE"),
        (["data", "prepare", "NONE", "--format", "nothing", "--out", "RUN"], "nothing"),
        (["data", "prepare", "-", "--out", "RUN"], "- looks like 'scenes': --format scenes. Formats are cauldron, "),
        (["train", "scenes_tiny", "lr=1e-3", "--out", "RUN"], "argument lr=1e-3: lr: unknown key; did you mean 'train.lr'?"),
        (["train", "scenes_tiny", "shuffle=2", "--dry-run"], "did you mean 'model.connector.shuffle'?"),
        (["train", "scenes_tiny", "path=D", "--dry-run"], "did you mean 'data.path' or 'model.from.path' or "),
        (["score", "cider", "--predictions", "NONE", "--references", "NONE"], "NONE"),
    ],
)
def test_a_call_that_cannot_work_exits_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    places = {"NONE": tmp_path / "NONE", "RUN": tmp_path / "run"}
    filled = [re.sub("NONE|RUN", lambda found: str(places[found.group()]), argument) for argument in arguments]
    code, out, err = call(capsys, *filled)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error[")]
    assert says in err[err.index(line) :]
    assert "Traceback" not in err
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("ending", [["--dry-run"], ["--out", "RUN"]])
@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_an_error_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tracker: str, ending: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)  # importing it fails, as if it was not installed
    words = [word.replace("RUN", str(tmp_path / "run")) for word in ending]
    code, _, err = call(capsys, "train", "scenes_tiny", "data.path=NONE", f"tracking.trackers=[{tracker}]", *words)
    assert code == 2
    assert err == (
        f"error[usage]: tracking.trackers=[{tracker}] needs the package {tracker!r}. pip install 'sightline[{tracker}]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_bug_of_ours_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [][1])
    with pytest.raises(IndexError):
        main(["doctor"])


# recipes, doctor ----------------------------------------------------------------------------------------------------------------


def test_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    listed = told(capsys, "recipes")["recipes"]
    assert set(listed) == set(RECIPES)
    assert all(line and "\n" not in line for line in listed.values())
    code, out, _ = call(capsys, "recipes")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(RECIPES)


def uncommented(shown: str) -> str:
    """What `recipes show` prints without the comments behind keys and without those at its end."""
    lines = [re.sub(r"  # [^\"]*$", "", line) for line in shown.splitlines() if not line.startswith("#")]
    return "".join(f"{line}\n" for line in lines)


def test_keys_are_explained_where_they_stand_first(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, "recipes", "show", "tinyvlm")[1]
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    told = re.findall(r"^[ -]*(\w+):.*?  # (.+)$", shown, re.MULTILINE)
    assert len(told) > 60
    for key, sentence in told:
        assert re.search(rf"`(\w+\.)*{key}` \|.*{re.escape(sentence)}", page) or f"\n\n{sentence}" in page, (key, sentence)
    assert shown.count("# Peak learning rate of parts without a rate of their own.") == 1


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_what_show_prints_is_a_configuration_of_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = call(capsys, "recipes", "show", name, "train.seed=7")
    assert code == 0
    file = tmp_path / "run.yaml"
    file.write_text(out, "utf-8")
    from sightline.assembly.config.resolving import resolve_config

    read = resolve_config(None, file, [])
    assert isinstance(read, RunConfig)
    assert read == resolve_config(RECIPES[name](), None, ["train.seed=7"])
    assert uncommented(out) == to_yaml(read)
    assert read.train.seed == 7
    values = told(capsys, "recipes", "show", name)
    assert values["recipe"] == name
    assert [stage["name"] for stage in values["outline"]] == [stage.name for stage in read.stages]


def test_doctor_looks_at_what_the_package_asks_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9e9, 1e9, 8e9))  # pyrefly: ignore
    found = told(capsys, "doctor")
    assert found["ok"] is True
    assert {check["state"] for check in found["checks"]} <= {"ok", "missing"}
    assert {"name", "state", "found", "remedy"} == found["checks"][0].keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        name: lines for name, lines in project["optional-dependencies"].items() if name not in ("dev", "track")
    }  # track is an older name of tensorboard
    asked = {line: "" for line in project["dependencies"]} | {line: name for name, lines in extras.items() for line in lines}
    least = {re.split("[>=<]", line)[0]: (re.findall(">=([0-9.]+)", line)[0], extra) for line, extra in asked.items()}
    assert least == doctor.PACKAGES
    monkeypatch.setitem(doctor.PACKAGES, "torch", ("99", ""))
    code, out, _ = call(capsys, "doctor", "--json")
    assert code == 2
    assert [check["name"] for check in json.loads(out)["checks"] if check["state"] == "bad"] == ["torch"]


BARE = """
import importlib.metadata, shutil, sys
hidden = {"torch", "transformers", "numpy", "yaml", "jinja2", "accelerate"}  # typer itself needs pydantic
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
found = importlib.metadata.version
def version(name):
    if MISSING and (name in hidden or name == "pyyaml"):
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
from sightline.cli import main
main(ARGUMENTS)
"""


@pytest.mark.parametrize("missing", [True, False])
def test_doctor_has_remedies_to_paste_on_a_bare_or_broken_installation(missing: bool) -> None:
    def bare(*arguments: str) -> str:
        code = BARE.replace("MISSING", str(missing)).replace("ARGUMENTS", repr(["doctor", *arguments]))
        environment = os.environ | {"OMP_WAIT_POLICY": "active", "COLUMNS": "50"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
        assert (done.returncode, done.stderr) == (2, "")
        return done.stdout

    checks = {check["name"]: check for check in json.loads(bare("--json"))["checks"]}
    bad = {name for name, check in checks.items() if check["state"] == "bad"} - {"devices"}
    assert bad == {"torch", "transformers", "threads"} | ({"numpy", "pyyaml", "jinja2", "accelerate"} if missing else set())
    install = [sys.executable, "-m", "pip", "install"]
    assert shlex.split(checks["torch"]["remedy"])[:4] == install
    assert checks["threads"]["remedy"] == "export OMP_WAIT_POLICY=passive"
    remedies = [check["remedy"] for check in checks.values() if check["remedy"]]
    for remedy in remedies:
        words = shlex.split(remedy)
        assert words[0] in (sys.executable, "export", "du")
        if words[:4] == install:
            assert Requirement(words[-1])
    printed = bare().splitlines()
    assert all(f"  {remedy}" in printed for remedy in remedies)  # none is wrapped, however narrow the terminal


# A run from beginning to end ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set and the configuration of a run of three steps."""
    path = tmp_path_factory.mktemp("home")
    rows = [record(f"r{n}", f"{n}.png", "val" if n > 5 else "train", [f"a dog {n}", f"the dog {n}"]) for n in range(9)]
    folder(path / "set", rows, {f"{n}.png": png(scene(n, 64)) for n in range(9)})
    config = run_config(path=str(path / "set"), train={"epochs": None, "steps": 3, "checkpoint_every": 3})
    (path / "run.yaml").write_text(to_yaml(config), "utf-8")
    return path


@pytest.mark.usefixtures("quiet")
def test_a_run_is_trained_evaluated_and_asked_by_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "run"
    trained = told(capsys, "train", "--config", home / "run.yaml", "runtime.device=cpu", "--out", run)
    assert trained.keys() >= {"run", "step", "checkpoint", "weights_sha256"}
    assert trained["step"] == 3
    assert (Path(trained["checkpoint"]) / "model").is_dir()
    assert {"config.yaml", "metrics.jsonl", "card.md"} <= {file.name for file in run.iterdir()}
    assert told(capsys, "train", "--config", run / "config.yaml", "--out", run) == trained  # finished: it says so again

    asked = ("eval", run, "--task", "caption", "--data", home / "set", "--max-new-tokens", 4, "--resamples", 10, "--device", "cpu")
    seen = told(capsys, *asked)
    assert seen["input"] == seen["ok"] + sum(seen["skipped"].values()) == 3
    assert Path(seen["folder"]).parent == run / "eval/caption"
    assert re.fullmatch("set-val-[0-9a-f]{8}-step-3", Path(seen["folder"]).name)  # the hash is that of --max-new-tokens
    assert told(capsys, *asked, "--control", "blind")["control"] == "blind"
    assert call(capsys, *asked)[1].count("cider_d") == 1

    picture = home / "set-source/7.png"
    answer = told(capsys, "generate", run, "--image", picture, "--max-new-tokens", 4, "--device", "cpu")
    assert answer.keys() == {"text", "tokens", "seconds", "checkpoint"}
    assert 1 <= answer["tokens"] <= 4
    code, out, _ = call(capsys, "generate", run, "--image", picture, "--max-new-tokens", 4, "--device", "cpu")
    assert (code, out.strip()) == (0, answer["text"])  # streamed, the same words
    broken = home / "broken.png"
    broken.write_bytes(b"no image")
    for arguments, says in (
        (["--image", broken], "image_format"),
        (["--image", home / "none.png"], "none.png"),
        (["--prompt", "a <image> b"], "placeholder_in_text"),
        (["--prompt", "word " * 300], "the model was trained with at most 120"),
    ):
        code, out, err = call(capsys, "generate", run, *arguments, "--device", "cpu")
        assert (code, out) == (2, "")
        assert says in err

    page = home / "check.html"
    report = told(capsys, "data", "check", "--run", run, "--html", page, "--workers", 0)
    assert (report["input"], report["ok"]) == (9, 9)
    assert report["training"]["stages"][0]["steps"] == 3
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_too_much_that_cannot_be_used_exits_with_3(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys,
        "train",
        "--config",
        home / "run.yaml",
        "data.max_tokens=12",
        "data.row_tokens=12",
        "--out",
        tmp_path / "run",
        "--json",
    )
    assert (code, out) == (3, ""), err
    assert "error[data-budget]: nothing of split 'train' can be trained on (too_long 12)" in err


def test_a_damaged_checkpoint_exits_with_5_and_is_left_as_it_is(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    step = Path(
        told(capsys, "train", "--config", home / "run.yaml", "train.steps=1", "runtime.device=cpu", "--out", run)["checkpoint"]
    )
    weights = step / "model" / "connector.safetensors"  # trained, so no origin has it
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, out, err = call(capsys, "eval", run, "--task", "caption", "--data", home / "set", "--json")
    assert (code, out) == (5, "")
    assert "error[storage]" in err
    assert weights.read_bytes() == content


def test_an_output_that_cannot_be_written_exits_with_2_or_5(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    code, out, err = call(capsys, "train", "--config", home / "run.yaml", "--out", taken)
    assert code in (2, 5)
    assert (out, taken.read_text()) == ("", "a file")
    assert str(taken) in err
