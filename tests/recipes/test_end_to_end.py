"""Every recipe goes its whole way on tiny models of its architectures: all stages, then evaluation and an answer."""

import re
from pathlib import Path

import pytest
import torch

from sightline.assembly.config import locate
from sightline.assembly.config.resolving import stage_plan
from sightline.assembly.evaluate.chat import ChatModel
from sightline.assembly.evaluate.evaluate import evaluate
from sightline.assembly.model.build import build_from_config
from sightline.assembly.model.summary import summarise
from sightline.data.samples.processing import Processing
from sightline.evaluation.spec import EvalSpec
from sightline.generation.decode import DecodingConfig
from sightline.runtime.storage import read_json_lines
from sightline.training.stages import PartConfig, resolve_rule
from tests.recipes.local import NAMES, Ran, read_weights, run_of


@pytest.fixture(scope="session", params=NAMES)
def ran(request: pytest.FixtureRequest, root: Path) -> Ran:
    return run_of(request.param, root)


def initial(ran: Ran) -> dict[str, torch.Tensor]:
    """The weights that the run began with."""
    if ran.config.init is not None:
        return read_weights(locate.model_folder(ran.config.init))
    first = stage_plan(ran.config, 0).data
    processing = Processing(prompt=first.prompt, template=first.template, supervise=first.supervise, max_tokens=first.max_tokens)
    return {
        name: value.detach().clone() for name, value in build_from_config(ran.config, processing, None).inner.state_dict().items()
    }


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
        plan, after = stage_plan(ran.config, number), ran.weights(stage.name)
        moved: dict[str, int] = {}
        for name, value in after.items():
            part = name.split(".")[0] if name.split(".")[0] in ("vision", "language") else "connector"
            changed = not torch.equal(value, before[name])
            moved[part] = moved.get(part, 0) + changed
            rule = resolve_rule(plan.parts.get(part, "frozen"), plan.train.lr)  # pyrefly: ignore
            assert not changed or trains(rule, name), f"{stage.name}: {name}"
        assert {part for part, count in moved.items() if count} == {part for part, rule in plan.parts.items() if rule != "frozen"}
        before = after


def test_the_rates_in_the_log_are_those_of_the_recipe(ran: Ran) -> None:
    """The first step of a stage without a warm-up runs at the peak."""
    lines = [line for line in read_json_lines(ran.path / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 2 * len(ran.config.stages)
    for number, (stage, told) in enumerate(zip(ran.config.stages, summarise(ran.config).stages, strict=True)):
        warmup = stage_plan(ran.config, number).train.warmup
        factor = 1.0 if warmup < 1 else 1 / warmup
        assert lines[2 * number]["lr"] == {row.name: pytest.approx(row.lr * factor) for row in told.table if row.lr}, stage.name


def test_the_table_before_the_run_is_the_table_of_the_run(ran: Ran) -> None:
    """Sizes that are computed without weights are those of the model that was trained."""
    weights = ran.weights(ran.config.stages[-1].name)
    tied = "language.lm_head.weight" not in weights
    told = {row.name: row.parameters for row in summarise(ran.config).stages[-1].table}
    held = dict.fromkeys(told, 0)
    for name, value in weights.items():
        held[name.split(".")[0] if name.split(".")[0] in ("vision", "language") else "connector"] += value.numel()
    assert told == held, tied


def test_the_saved_folder_is_evaluated_and_answers(ran: Ran, root: Path) -> None:
    folder = locate.model_folder(ran.path)
    spec = EvalSpec(data=str(ran.data), batch_size=2, max_new_tokens=4)
    done = evaluate(spec, str(ran.path), threads=1)
    assert done.scores["cider_d"].n == 2
    assert not done.predicted.skipped
    speaker = ChatModel.open(str(folder), threads=1)
    image = next((root / "captions").glob("*.png"))
    answer = speaker.answer((speaker.opening(1, "What is it?"),), [image], DecodingConfig(max_new_tokens=4))
    assert 1 <= answer.num_tokens <= 4
    assert not any(token in answer.text for token in ("<image>", "<row_", "<fake_token"))
