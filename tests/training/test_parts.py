"""Parts are named by the model: a foreign model with a loose logit scale trains, each part at its own rate."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.training import loop, optim, stages
from sightline.training.checkpoint import Progress
from sightline.training.lora import LoraRule
from sightline.training.stages import PartConfig
from sightline.types import Batch, Loss
from tests.builders import batch_of, sample
from tests.training.helpers import job, moved, weights


class DualEncoder(nn.Module):
    """Two linear maps and a logit scale; it names its parts only by how it is made."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(4, 3), nn.Linear(5, 3)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10)))

    def similarity(self) -> Tensor:
        image, text = (nn.functional.normalize(part(torch.eye(part.in_features)[:4]), dim=1) for part in (self.image, self.text))
        return self.logit_scale.exp() * image @ text.T


class Towers(DualEncoder):
    """The same, with both maps in one part."""

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        named = dict(self.named_parameters())
        scale = named.pop("logit_scale")
        return {"towers": named, "logit_scale": {"logit_scale": scale}}


class Forgetful(DualEncoder):
    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"image": {f"image.{name}": value for name, value in self.image.named_parameters()}}


def contrastive(model: Any, batch: Batch) -> Loss:
    return Loss(nn.functional.cross_entropy(model.similarity(), torch.arange(4)), torch.tensor(1.0))


def trained(model: nn.Module, rules: Any) -> tuple[loop.Job, set[str]]:
    """Two steps of AdamW, which moves each weight that has a gradient by about its rate."""
    before = weights(model)
    stage = stages.apply(model, "align", rules, 1e-2, 0.1)
    given = job(model, [[batch_of([sample(1, [2])])]] * 2, contrastive, stage=stage)
    given = loop.replace(given, optimiser=optim.build_optimiser(stage, (0.9, 0.999), 1e-8))
    loop.fit(given, Progress())
    return given, moved(model, before)


def test_a_loose_parameter_is_a_part_with_its_own_rate() -> None:
    model = DualEncoder()
    given, changed = trained(model, {"image": "train", "logit_scale": 1e-3})
    assert changed == {"image.weight", "image.bias", "logit_scale"}
    assert given.log[0]["lr"] == {"image": 1e-2, "logit_scale": 1e-3}
    assert model.logit_scale.item() == pytest.approx(math.log(10), abs=2.1e-3)
    assert model.logit_scale.item() != pytest.approx(math.log(10), abs=1.9e-3)
    assert [(row.name, row.parameters, row.lr) for row in given.stage.table] == [
        ("image", 15, 1e-2),
        ("text", 18, 0.0),
        ("logit_scale", 1, 1e-3),
    ]
    assert [group.weight_decay for group in given.stage.groups if group.name == "logit_scale"] == [0.0]
    assert trained(DualEncoder(), {"image": "train", "text": "train", "logit_scale": "frozen"})[1].isdisjoint({"logit_scale"})


def test_a_model_may_group_its_parameters_itself() -> None:
    _, changed = trained(Towers(), {"towers": 1e-3})
    assert changed == {"image.weight", "image.bias", "text.weight", "text.bias"}


@pytest.mark.parametrize(
    ("model", "rules", "message"),
    [
        (DualEncoder, {"connector": "train"}, r"no part 'connector'; it has image, text, logit_scale\."),
        (Towers, {"image": "train"}, r"no part 'image'; it has towers, logit_scale\."),
        (Forgetful, {"image": "train"}, r"Forgetful\.parts\(\) leaves out the parameter 'logit_scale'"),
        (DualEncoder, {"logit_scale": PartConfig(lr=1.0, lora=LoraRule())}, r"'logit_scale' of DualEncoder is not a module"),
        (Towers, {"towers": PartConfig(lr=1.0, lora=LoraRule())}, r"'towers' of Towers is not a module"),
    ],
)
def test_what_does_not_fit_the_parts_is_refused(model: type[nn.Module], rules: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages.apply(model(), "align", rules, 1e-2, 0.0)
