"""The recipes of dual encoders go their whole way on tiny models: training, then retrieval and composition."""

import json
from pathlib import Path

import pytest

from sightline.assembly.config import locate
from sightline.assembly.config.resolving import resolve_config
from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.inspect.check import CheckRequest, check_data
from sightline.assembly.inspect.preview import PreviewRequest, preview
from sightline.assembly.inspect.rows import folders_of
from sightline.assembly.model.blueprint import config_blueprint
from sightline.assembly.model.summary import summarise
from sightline.assembly.train.run import train
from sightline.data.check import CheckOptions
from sightline.errors import UsageError
from sightline.evaluation.spec import EvalSpec
from sightline.recipes import RECIPES
from sightline.runtime.storage import read_json_lines
from tests.assembly.train.helpers import prepared_scenes
from tests.builders import encoder_folder
from tests.duals import dual_folder, text_folder
from tests.recipes.local import DUALS, read_weights


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_scenes(tmp_path_factory.mktemp("scenes") / "set", 60)


def local_parts(name: str) -> list[str]:
    if DUALS[name]:
        return [f"model.dual.path={dual_folder(DUALS[name])}"]
    return [f"model.vision.path={encoder_folder('mobilenet_v2')}", f"model.dual.text.path={text_folder()}"]


@pytest.mark.parametrize("name", sorted(DUALS))
def test_a_recipe_goes_its_whole_way(name: str, scenes: Path, tmp_path: Path) -> None:
    arguments = [*local_parts(name), f"data.path={scenes}", "train.steps=2", "train.batch_size=4", "data.workers=0"]
    config = resolve_config(RECIPES[name](), None, [*arguments, "runtime.threads=1", "runtime.device=cpu", "data.max_tokens=24"])
    train(config, tmp_path / "run")
    lines = [line for line in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["texts"] for line in lines] == [8 if name == "negclip" else 4] * 2
    checks = [line for line in read_json_lines(tmp_path / "run" / "metrics.jsonl") if line.get("event") == "evaluate"]
    best = "score" if name == "flickr8k_dual" else "loss"
    for line in checks:
        assert line["value"] == (line["i2t_r1"] + line["t2i_r1"] if best == "score" else -line["validation_loss"])
    assert checks
    (told,) = summarise(config).stages
    weights = read_weights(locate.model_folder(tmp_path / "run"))
    if not DUALS[name]:  # a part for each file
        held = {row.name: sum(v.numel() for n, v in weights.items() if n.split(".")[0] == row.name) for row in told.table}
        buffers = sum(v.numel() for n, v in weights.items() if "running_" in n or "num_batches" in n)
        assert held == {row.name: row.parameters + (buffers if row.name == "vision" else 0) for row in told.table}
    for task in ("retrieval", "composition"):
        spec = EvalSpec(data=str(scenes), task=task, split="val", resamples=10)
        done = evaluate(spec, str(tmp_path / "run"), threads=1)
        assert done.scores[done.task.headline.name].n == len(done.queries) > 2
    assert json.loads((done.folder / "scores.json").read_text())["headline"] == "accuracy"


def test_data_check_measures_no_rows_of_pairs_and_preview_refuses(scenes: Path) -> None:
    config = resolve_config(RECIPES["clip"](), None, [*local_parts("clip"), f"data.path={scenes}"])
    options = CheckOptions(workers=0, near_bits=None)
    request = CheckRequest(folders_of(config), options, describe=lambda folders: config_blueprint(config))
    training = check_data(request).to_json()["training"]
    assert (training["stages"], training["rows"]) == ([], {})
    assert training["model"]["position_limit"] == 24
    with pytest.raises(UsageError, match="no rows of tokens"):
        preview(PreviewRequest(scenes, Path("page.html"), "val", 3, 0), config_blueprint(config))
