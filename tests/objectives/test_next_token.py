"""`next_token` against transformers' own loss, by source, and with terms of the model."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sightline.objectives.auxiliary import with_auxiliary
from sightline.objectives.next_token import NextToken
from sightline.types import Head, Hidden, Loss
from tests.builders import Exact, batch_of, sample, vlm


def test_the_loss_is_the_cross_entropy_of_the_logits_that_transformers_users_see() -> None:
    model = vlm("siglip", "llama", attention="eager").double()
    batch = batch_of([sample(1, [4])], [sample(2, [7], num_images=2)])
    ids = batch.tokens.ids_BT.clone()
    assert batch.visual is not None
    assert batch.visual.pixels_NHWC is not None
    ids.view(-1)[batch.visual.slot_M] = model.config.image_token_id
    with Exact(), torch.no_grad():
        pixels = model.normalise(batch.visual.pixels_NHWC)
        logits = model(input_ids=ids, pixel_values=pixels, attention_mask=(batch.tokens.sample_BT >= 0).long()).logits
        loss = NextToken()(model, batch)
    labels = torch.full(ids.shape, -100)
    labels.view(-1)[batch.supervision.slot_S + 1] = batch.supervision.target_S
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-10)
    assert loss.weight.item() == 11


def test_a_mixture_logs_the_loss_of_each_source() -> None:
    model = vlm("siglip", "llama")
    first, second = sample(1, [4]), replace(sample(2, [3, 2]), source=2)
    with torch.no_grad():
        loss = NextToken()(model, batch_of([first, second]))
        apart = [NextToken()(model, batch_of([one])).total.item() for one in (first, second)]
    found = {name: (float(total), float(weight)) for name, (total, weight) in loss.parts.items()}
    assert found == {
        "nll/0": (pytest.approx(apart[0], rel=1e-5), 4.0),
        "nll/1": (0.0, 0.0),
        "nll/2": (pytest.approx(apart[1], rel=1e-5), 5.0),
    }


def test_a_batch_without_targets_has_no_weight_and_a_finite_gradient() -> None:
    model = vlm("siglip", "llama")
    loss = NextToken()(model, batch_of([], []))
    assert (loss.total.item(), loss.weight.item()) == (0.0, 0.0)
    loss.total.backward()
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


def test_a_term_of_the_model_counts_as_much_as_the_loss_it_is_added_to() -> None:
    """After division by the weight the step minimises `mean loss + value`."""
    value = torch.tensor(0.25, requires_grad=True)
    hidden = Hidden(torch.zeros(0, 1), Head(torch.zeros(1, 1)), auxiliary={"balance": value})
    loss = with_auxiliary(Loss(torch.tensor(6.0), torch.tensor(3.0)), hidden)
    assert (loss.total / loss.weight).item() == pytest.approx(2.25)
    assert [float(item) for item in loss.parts["balance"]] == [0.75, 3.0]
    (loss.total / loss.weight).backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(1.0)
