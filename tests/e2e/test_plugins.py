"""Plug-ins: the examples of the pages train, resume and are evaluated; no code is imported that the command does not name."""

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline import registry
from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.model.build import read_model
from sightline.cli import main
from sightline.data.images.tilings import TILINGS
from sightline.errors import ConfigError, StorageError, UsageError
from sightline.evaluation.tasks import TASKS, task_by_name
from sightline.models.connectors import CONNECTORS
from sightline.objectives import OBJECTIVES
from sightline.recipes import RECIPES
from sightline.runtime import plugins
from sightline.studies import sweep as sweeps
from tests.golden import make
from tests.pages import DOCS, write_python

FOLDER = make.HOME / make.RUN / "checkpoints/step-370/model"
CONNECTOR = "model.connector.kind=pooled:PooledConfig"
OBJECTIVE = "objective.kind=early:EarlyConfig"
SMALL = [
    "model.vision.config.image_size=32",
    "model.language.tokenizer.vocabulary=300",
    "train.batch_size=2",
    "train.checkpoint_every=1",
    "train.evaluate_samples=0",
    "runtime.device=cpu",
    "runtime.threads=1",
]


@pytest.fixture(autouse=True)
def _no_plugins_stay() -> Iterator[None]:
    yield
    plugins.forget()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A copy of the golden dataset folder, which commands may write into."""
    return Path(shutil.copytree(make.HOME / "data", tmp_path / "scenes"))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs `sightline` in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_the_examples_of_the_pages_train_resume_and_are_evaluated(
    tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_python("connectors.md", tmp_path / "pooled.py"), write_python("objectives.md", tmp_path / "early.py")]
    named = [word for file in files for word in ("--plugin", file)]
    run = tmp_path / "run"
    train = ["train", "scenes_tiny", f"data.path={scenes}", *SMALL, CONNECTOR, "model.connector.side=4", OBJECTIVE, "--out", run]
    code, _, err = call(capsys, *train, "train.steps=2", *named)
    assert code == 0, err
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["model"]["connector"] == {"shuffle": 1, "merge": "blocks", "kind": "pooled:PooledConfig", "side": 4}
    assert stored["objective"] == {"kind": "early:EarlyConfig", "decay": 0.9}
    assert "pooled.py (sha256 " in (run / "card.md").read_text()
    assert "early.py (sha256 " in (run / "card.md").read_text()

    # The same command goes on only with the same plug-ins.
    shutil.rmtree(run / "checkpoints/step-2")
    code, _, err = call(capsys, *train, "train.steps=2", *named[:2])
    assert code == 2
    assert "objective.kind: 'early:EarlyConfig' is code outside of Sightline" in err
    code, out, err = call(capsys, *train, "train.steps=2", *named, "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 2
    assert "step-1" in err
    assert "bit for bit" not in err

    evaluate = ["eval", run, "--task", "caption", "--data", scenes, "--split", "held", "--limit", "2", "--resamples", "2"]
    code, out, err = call(capsys, *evaluate, *named[:2], "--max-new-tokens", "2", "--json")
    assert code == 0, err
    assert json.loads(out)["scores"]["cider_d"]["n"] == 2
    code, out, err = call(capsys, *evaluate)
    assert code == 2
    assert "error[config]" in err
    assert "add --plugin pooled, or --plugin PATH/pooled.py for a file" in err

    code, out, err = call(capsys, "recipes", "show", "scenes_tiny", CONNECTOR, *named)
    assert code == 0, err
    assert "connector pooled:PooledConfig: 9,312 parameters" in out  # 96 x 96 weights and 96 biases


def test_a_misspelled_field_of_a_plug_in_has_the_nearest_name_of_its_own_fields(tmp_path: Path) -> None:
    plugins.load(str(write_python("connectors.md", tmp_path / "pooled.py")))
    with pytest.raises(
        ConfigError, match=r"argument model.connector.sid=4: model.connector.sid: unknown key; did you mean 'side'\?"
    ):
        resolve_config(RECIPES["scenes_tiny"](), None, [CONNECTOR, "model.connector.sid=4"])
    with pytest.raises(ConfigError, match=r"model.connector.kind: plug-in 'pooled' has no class 'Pooled_'"):
        resolve_config(RECIPES["scenes_tiny"](), None, ["model.connector.kind=pooled:Pooled_"])
    with pytest.raises(ConfigError, match="'pooled:Pooled' is no class that inherits from ConnectorConfig"):
        resolve_config(RECIPES["scenes_tiny"](), None, ["model.connector.kind=pooled:Pooled"])
    with pytest.raises(
        ConfigError, match=r"model.connector.kind: unknown kind 'mpl'; did you mean 'mlp'\? \(known: align, .*vet\)"
    ):
        resolve_config(RECIPES["scenes_tiny"](), None, ["model.connector.kind=mpl"])


def test_a_class_that_inherits_from_a_built_in_one_has_a_kind_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "wide.py"
    file.write_text(
        "from typing import Literal\nfrom sightline.models.connectors.mlp import MLPConfig\n"
        "class Wide(MLPConfig):\n    hidden: int = 7\n"
        "class Named(MLPConfig):\n    kind: Literal['named'] = 'named'\n"
    )
    plugins.load(str(file))
    config = resolve_config(RECIPES["scenes_tiny"](), None, ["model.connector.kind=wide:Wide"])
    assert json.loads(config.model_dump_json())["model"]["connector"]["hidden"] == 7
    assert config.model.connector == CONNECTORS.find("wide:Wide")()
    with pytest.raises(ConfigError, match="'wide:Named' is a class that declares the kind 'named'; leave `kind` out of the class"):
        resolve_config(RECIPES["scenes_tiny"](), None, ["model.connector.kind=wide:Named"])


def test_every_worker_of_a_sweep_loads_the_plug_ins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_python("connectors.md", tmp_path / "pooled.py")
    arms = {"mlp": {}, "pooled": {"model.connector.kind": "pooled:PooledConfig"}}
    sweep = {"recipe": "scenes_tiny", "arms": arms, "runs": [{"seeds": [0]}], "evaluations": [{"name": "scenes"}]}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    told: list[list[str]] = []
    for name in ("check_data", "refuse_others", "write_note"):
        monkeypatch.setattr(sweeps, name, lambda *arguments: None)
    monkeypatch.setattr(sweeps, "make_runs", lambda runs, out: [])
    monkeypatch.setattr(sweeps, "share", lambda words, count: told.append(words))
    words = ["sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "out", "--jobs", "2", "--no-report"]
    code, _, err = call(capsys, *words)
    assert code == 2
    assert "run 'pooled-s0': " in err
    assert "'pooled:PooledConfig' is code outside" in err
    assert call(capsys, *words, "--plugin", file)[0] == 0
    assert told[0][-2:] == ["--plugin", str(file)]


# What others wrote ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on Python's path that leaves a file when it is imported; nothing may have imported it."""
    mark = tmp_path / "was_imported"
    place = tmp_path / "path"
    place.mkdir()
    (place / "trap_module.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nsystem = print\n")
    monkeypatch.syspath_prepend(place)
    yield tmp_path
    assert not mark.exists()
    assert "trap_module" not in sys.modules


def edited(target: Path, file: str, change: dict[str, Any]) -> Path:
    """A copy of the golden model folder with other values in one of its JSON files."""
    shutil.copytree(FOLDER, target)
    values = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(values | change))
    return target


@pytest.mark.parametrize("kind", ["trap_module:system", "os:system", "trap_module.deeper:Class"])
def test_a_model_folder_cannot_name_code(trap: Path, scenes: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    folder = edited(trap / "model", "config.json", {"connector": {"kind": kind, "command": "touch x"}})
    image = next((scenes / "images").rglob("*.*"))
    settings = [f"data.path={scenes}", *SMALL]
    for words in (
        ["eval", folder, "--task", "caption", "--data", scenes, "--split", "held"],
        ["generate", folder, "--image", image],
        ["probe", folder, "--data", scenes, "--what", "noise", "--split", "held"],
        ["data", "check", scenes, "--run", folder],
        ["data", "preview", scenes, "--run", folder, "--out", trap / "page.html"],
        ["train", "scenes_tiny", *settings, f"init={folder}", "train.steps=1", "--out", trap / "run"],
        ["train", "scenes_tiny", *settings, f"model.from={{path: {folder}, parts: [connector]}}", "--out", trap / "run"],
    ):
        code, _, err = call(capsys, *words)
        assert code == 2, (words, err)
        assert f"{kind!r} is code outside of Sightline, which runs only if this command names it" in err
        assert f"add --plugin {kind.partition(':')[0]}" in err


def test_neither_can_its_processing_nor_a_configuration(trap: Path) -> None:
    folder = edited(trap / "model", "sightline.json", {"tiling": {"kind": "trap_module:system"}})
    with pytest.raises(StorageError, match=r"sightline.json: .*tiling.kind: 'trap_module:system' is code outside"):
        read_model(folder)
    file = trap / "config.yaml"
    file.write_text("objective:\n  kind: trap_module:system\n")
    with pytest.raises(ConfigError, match=r"config.yaml:2: objective.kind: 'trap_module:system' is code outside"):
        resolve_config(RECIPES["scenes_tiny"](), file, [])
    with pytest.raises(UsageError, match="no task 'trap_module:system'"):
        task_by_name("trap_module:system")


@pytest.mark.parametrize("connector", [{}, {"kind": None}, {"kind": ["mlp"]}, {"kind": "mpl"}, {"kind": "mlp", "depth": "x"}])
def test_a_damaged_connector_section_is_a_config_error(tmp_path: Path, connector: dict[str, Any]) -> None:
    folder = edited(tmp_path / "model", "config.json", {"connector": connector or {"shuffle": 2}})
    with pytest.raises(ConfigError, match="the model's connector: "):
        read_model(folder)


# What may be loaded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gone.py", None, "there is no such file"),
        ("not-a-name.py", "", "'not-a-name' is no name of a Python module"),
        ("no_such_package_here", None, "cannot be imported: ModuleNotFoundError"),
        ("torch.py", "", "there is a module 'torch' already"),
        ("broken.py", "x = (", "cannot be imported: SyntaxError"),
        ("raising.py", "raise KeyError('a\\nb')", "cannot be imported: KeyError"),
    ],
)
def test_what_cannot_be_loaded_is_a_usage_error(tmp_path: Path, name: str, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=expected):
        plugins.load(str(tmp_path / name) if name.endswith(".py") else name)
    assert plugins.descriptions() == ""


def test_a_module_of_an_installed_package_is_loaded_by_its_own_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pooled_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    write_python("connectors.md", package / "connectors.py")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load("pooled_package")
    with pytest.raises(LookupError, match=r"add --plugin pooled_package\.connectors"):
        CONNECTORS.find("pooled_package.connectors:PooledConfig")
    assert "pooled_package.connectors" not in sys.modules
    plugins.load("pooled_package.connectors")
    assert CONNECTORS.find("pooled_package.connectors:PooledConfig")().kind == "pooled_package.connectors:PooledConfig"
    assert plugins.descriptions() == "pooled_package, pooled_package.connectors"


def test_an_entry_point_names_a_class_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_python("objectives.md", tmp_path / "installed_early.py")
    monkeypatch.syspath_prepend(tmp_path)
    listed = {
        "early": EntryPoint("early", "installed_early:EarlyConfig", "sightline.objectives"),
        "gone": EntryPoint("gone", "installed_early:Gone", "sightline.objectives"),
        "cal": EntryPoint("cal", "installed_early:EarlyConfig", "sightline.objectives"),
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(listed.values()).select(group=group))
    config = resolve_config(RECIPES["scenes_tiny"](), None, ["objective.kind=early", "objective.decay=0.5"])
    assert json.loads(config.model_dump_json())["objective"] == {"kind": "early", "decay": 0.5}
    assert OBJECTIVES.find("cal") is OBJECTIVES["cal"]
    with pytest.raises(ConfigError, match="'gone' is installed_early:Gone of an installed package, which fails"):
        resolve_config(RECIPES["scenes_tiny"](), None, ["objective.kind=gone"])
    with pytest.raises(LookupError, match="unknown kind 'earlyy'; did you mean 'early'"):
        OBJECTIVES.find("earlyy")
    with pytest.raises(LookupError, match="unknown kind"):
        CONNECTORS.find("early")


def test_a_task_of_a_plug_in_is_asked_for_by_name(tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "short_captions.py"
    file.write_text("from sightline.evaluation.tasks.caption import Caption\nclass Short(Caption):\n    max_new_tokens = 3\n")
    plugins.load(str(file))
    assert task_by_name("short_captions:Short", 5).max_new_tokens == 3
    assert type(task_by_name("caption")) is TASKS["caption"]
    with pytest.raises(UsageError, match="no task 'short_captions:Caption_'"):
        task_by_name("short_captions:Caption_")
    run = Path(shutil.copytree(make.HOME / make.RUN, tmp_path / "run"))
    words = ["eval", run, "--task", "short_captions:Short", "--data", scenes, "--split", "held", "--limit", "2", "--resamples", "2"]
    code, out, err = call(capsys, *words, "--plugin", file, "--json")
    assert code == 0, err
    assert json.loads(out)["scores"]["cider_d"]["n"] == 2
    (folder,) = (run / "eval" / "short_captions_Short").iterdir()
    assert json.loads((folder / "scores.json").read_text())["settings"]["decoding"]["max_new_tokens"] == 3


def test_the_page_names_the_groups_of_entry_points() -> None:
    page = (DOCS / "plugins.md").read_text("utf-8")
    for known in (CONNECTORS, OBJECTIVES, TILINGS, TASKS):
        assert f"| `{known.group}` |" in page
        assert f".{known.base.__name__}` |" in page
