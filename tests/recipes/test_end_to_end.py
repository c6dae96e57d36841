"""Every recipe goes its whole way on tiny models of its architectures: all stages, then evaluation and an answer."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.assembly.config import locate
from sightline.assembly.config import resolving as settings
from sightline.assembly.config.schema import RunConfig
from sightline.assembly.evaluate.chat import ChatModel
from sightline.assembly.evaluate.evaluate import EvaluationRequest, evaluate
from sightline.assembly.model import build as models
from sightline.assembly.model.outline import outline
from sightline.assembly.train.run import train
from sightline.data.samples.processing import Processing
from sightline.generation.decode import DecodingConfig
from sightline.recipes import RECIPES
from sightline.runtime.storage import read_json_lines
from sightline.training.stages import PartConfig, resolved
from tests.recipes.local import PARTS, captions_folder, instructions_folder, model_arguments

NAMES = sorted([*PARTS, "alignvlm_smolvlm"])
# The tiny decoders have 256 positions, SmolVLM's 4096.
LENGTHS = {"alignvlm_smolvlm": 1024, "nanovlm": 128}
CAPTIONED = ("sets/llava-558k", "sets/cc3m-595k", "sets/cc12m", "sets/pixmo-cap-100k")


@dataclass(frozen=True)
class Ran:
    """A finished run of a recipe."""

    name: str
    config: RunConfig
    path: Path
    data: Path

    def weights(self, stage: str) -> dict[str, torch.Tensor]:
        return read_weights(locate.model_folder(self.path, stage))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of all files of a model folder."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    captions_folder(folder)
    for number, name in enumerate(("instructions", "documents", "charts", "long")):
        instructions_folder(folder, name, 10 * number)
    return folder


def arguments(name: str, root: Path) -> list[str]:
    """The recipe on local folders, two steps a stage."""
    recipe, out = (
        RECIPES[name](),
        [*model_arguments(name), "data.workers=0", "runtime.threads=1", "runtime.gradient_checkpointing=false"],
    )
    out += ["train.accumulate=1", "data.validation_split=null", f"data.max_tokens={LENGTHS.get(name, 256)}"]
    if recipe.train.batch_tokens is not None:
        out += ["data.row_tokens=256", "train.batch_tokens=512"]
    elif recipe.train.batch_size is not None:
        out += ["train.batch_size=2"]
    for stage in recipe.stages:
        if "mixture" in stage.data:
            sets = ", ".join(f"{{path: {root / 'sets' / each}}}" for each in ("instructions", "documents", "charts", "long"))
            out.append(f"stages.{stage.name}.data.mixture=[{sets}]")
        elif "path" in stage.data:
            out.append(f"stages.{stage.name}.data.path={local_data(stage.data['path'], root)}")
        out += [f"stages.{stage.name}.train.steps=2"]
        out += [f"stages.{stage.name}.train.batch_size=2"] if "batch_size" in stage.train else []
        out += [f"stages.{stage.name}.data.max_tokens=256"] if "max_tokens" in stage.data else []
    if recipe.data.path is not None:
        out.append(f"data.path={local_data(recipe.data.path, root)}")
    return out


def local_data(path: str, root: Path) -> Path:
    return root / "sets" / ("captions" if path in CAPTIONED else "instructions")


@pytest.fixture(scope="session", params=NAMES)
def ran(request: pytest.FixtureRequest, root: Path) -> Ran:
    return run_of(request.param, root)


def run_of(name: str, root: Path) -> Ran:
    path, given = root / "runs" / name, arguments(name, root)
    if name == "tinyvlm_instruct":
        given.append(f"init={run_of('tinyvlm', root).path}")
    config = settings.resolve(RECIPES[name](), None, given)
    if not path.exists():
        train(config, path)
    return Ran(name, config, path, root / "sets/captions")


def initial(ran: Ran) -> dict[str, torch.Tensor]:
    """The weights that the run began with."""
    if ran.config.init is not None:
        return read_weights(locate.model_folder(ran.config.init))
    first = settings.plan(ran.config, 0).data
    processing = Processing(prompt=first.prompt, template=first.template, supervise=first.supervise, max_tokens=first.max_tokens)
    return {name: value.detach().clone() for name, value in models.build(ran.config, processing, None).inner.state_dict().items()}


def trains(rule: PartConfig | None, name: str) -> bool:
    """Whether a weight of a part may move under its rule, by the recipe's own words."""
    if rule is None:
        return False
    if rule.lora is None:
        return True
    targets = rf"\.({'|'.join(rule.lora.targets)})\.weight$"
    return bool(re.search(targets, name) or re.search(r"embed_tokens|lm_head|(input|post_attention)_layernorm", name))


def test_what_moves_in_each_stage_is_what_its_table_says(ran: Ran) -> None:
    """Weights of frozen parts are bit-equal from a stage's end to the next; every part that trains has moved."""
    before = initial(ran)
    for number, stage in enumerate(ran.config.stages):
        plan, after = settings.plan(ran.config, number), ran.weights(stage.name)
        moved: dict[str, int] = {}
        for name, value in after.items():
            part = name.split(".")[0] if name.split(".")[0] in ("vision", "language") else "connector"
            changed = not torch.equal(value, before[name])
            moved[part] = moved.get(part, 0) + changed
            rule = resolved(plan.parts.get(part, "frozen"), plan.train.lr)  # pyrefly: ignore
            assert not changed or trains(rule, name), f"{stage.name}: {name}"
        assert {part for part, count in moved.items() if count} == {part for part, rule in plan.parts.items() if rule != "frozen"}
        before = after


def test_the_rates_in_the_log_are_those_of_the_recipe(ran: Ran) -> None:
    """The first step of a stage without a warm-up runs at the peak."""
    lines = [line for line in read_json_lines(ran.path / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 2 * len(ran.config.stages)
    for number, (stage, told) in enumerate(zip(ran.config.stages, outline(ran.config).stages, strict=True)):
        warmup = settings.plan(ran.config, number).train.warmup
        factor = 1.0 if warmup < 1 else 1 / warmup
        assert lines[2 * number]["lr"] == {row.name: pytest.approx(row.lr * factor) for row in told.table if row.lr}, stage.name


def test_the_table_before_the_run_is_the_table_of_the_run(ran: Ran) -> None:
    """Sizes that are computed without weights are those of the model that was trained."""
    weights = ran.weights(ran.config.stages[-1].name)
    tied = "language.lm_head.weight" not in weights
    told = {row.name: row.parameters for row in outline(ran.config).stages[-1].table}
    held = dict.fromkeys(told, 0)
    for name, value in weights.items():
        held[name.split(".")[0] if name.split(".")[0] in ("vision", "language") else "connector"] += value.numel()
    assert told == held, tied


def test_the_saved_folder_is_evaluated_and_answers(ran: Ran, root: Path) -> None:
    folder = locate.model_folder(ran.path)
    done = evaluate(
        EvaluationRequest(
            model=str(ran.path), task="caption", data=str(ran.data), split="val", batch_size=2, max_new_tokens=4, threads=1
        )
    )
    assert done.scores["cider_d"].n == 2
    assert not done.predicted.skipped
    speaker = ChatModel.open(str(folder), threads=1)
    image = next((root / "captions").glob("*.png"))
    answer = speaker.answer((speaker.opening(1, "What is it?"),), [image], DecodingConfig(max_new_tokens=4))
    assert 1 <= answer.num_tokens <= 4
    assert not any(token in answer.text for token in ("<image>", "<row_", "<fake_token"))
