"""CAL against the authors' arithmetic, `next_token`, and the masked pass that its cheap pass without image stands for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.objectives import CALConfig
from sightline.objectives.cal import CAL, PublishedCAL
from sightline.objectives.changed_images import blur, mask_cells, with_changed_images
from sightline.objectives.next_token import NextToken
from sightline.ops.cross_entropy import target_logits
from sightline.ops.pooling import pool_within_spans
from sightline.types import PADDING, Batch, Head, Hidden, Loss, Sample
from tests.builders import Exact, batch_of, branch, pictures, sample, vlm

IMAGE_FIRST = 4


def image_first(seed: int, length: int) -> Sample:
    """An image with nothing before it, then a supervised text: its first token is predicted from the image alone."""
    ids = [0] * IMAGE_FIRST + np.random.default_rng(seed).integers(3, 300, length).tolist()
    slots = range(IMAGE_FIRST)
    parts = (branch(ids, (IMAGE_FIRST, len(ids)), slots=slots),)
    return Sample(parts, 0, np.array(slots), images=pictures(seed, 1), tokens_per_crop=IMAGE_FIRST)


def the_samples() -> list[Sample]:
    """Two captions that share a prefix; two images; no image; a caption right behind its image; an image first."""
    return [
        *(sample(1, [4, 2]), sample(2, [5], num_images=2), sample(3, [6], num_images=0)),
        *(sample(4, [3, 1], prompt=0), image_first(5, 4)),
    ]


def alone() -> list[list[Sample]]:
    """The same kinds in plain rows: one sample each, no shared prefix."""
    return [
        [sample(1, [4])],
        [sample(2, [5], num_images=2)],
        [sample(3, [6], num_images=0)],
        [sample(4, [3], prompt=0)],
        [image_first(5, 4)],
    ]


# The authors' arithmetic ----------------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Random hidden states for every place of every row, others without the image than with it."""

    def __init__(self, batch: Batch, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        rows, width = batch.tokens.ids_BT.shape
        self.seeing = nn.Parameter(torch.randn(rows, width, 6, dtype=torch.float64))
        self.blind = torch.randn(rows, width, 6, dtype=torch.float64)
        self.head = nn.Parameter(torch.randn(300, 6, dtype=torch.float64) * 2)
        seen = torch.zeros(rows * width, dtype=torch.bool)
        if batch.visual is not None:
            seen[batch.visual.slot_M] = True
        self.is_image = seen.view(rows, width)
        has_image = self.is_image.any(1)
        self.blind[~has_image] = self.seeing.detach()[~has_image]

    def hidden(self, batch: Batch) -> Hidden:
        slot = batch.supervision.slot_S
        known = slot >= 0
        assert batch.visual is None or bool(known.all())
        row = slot // batch.tokens.ids_BT.shape[1]
        place = batch.tokens.position_BT.flatten()[slot]
        states = self.blind if batch.visual is None and bool(self.is_image.any()) else self.seeing
        return Hidden(torch.where(known[:, None], states[row, place], 0.0), Head(self.head))


def authors(model: Table, batch: Batch, low: float, high: float, window: int) -> Tensor:
    """`llava_llama.py` of the authors' repository, step by step on full logits, but for the logits of image positions.

    Those are 0 in the second pass, as `PublishedCAL` takes them; the authors' model gives them a logit of its own, with flash
    attention too, which zero-fills the attention output of masked rows and not their residual stream.
    """
    padding = batch.tokens.sample_BT == PADDING
    logits = model.seeing @ model.head.T
    with torch.no_grad():
        zero = torch.zeros((), dtype=torch.float64)
        first = torch.where(padding[..., None], zero, logits)
        second = torch.where((padding | model.is_image)[..., None], zero, model.blind @ model.head.T)
        labels = torch.full(batch.tokens.ids_BT.shape, -100)
        labels.view(-1)[batch.supervision.slot_S + 1] = batch.supervision.target_S
        shifted = labels[:, 1:]
        index = torch.where(shifted == -100, 0, shifted)[..., None]
        difference = first[:, :-1].gather(2, index) - second[:, :-1].gather(2, index)
        weight = difference.squeeze(2).clamp(low, high).flatten()[None, None]
        pool = nn.AvgPool1d(window, stride=1, padding=window // 2, count_include_pad=False)
        weight = pool(weight).flatten()
    flat = shifted.flatten()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), flat, ignore_index=-100, reduction="none")
    return (loss * weight).sum() / (weight[flat != -100].sum() + 1e-6)


@pytest.mark.parametrize(("low", "high", "window"), [(1.0, 5.0, 3), (0.0, 2.0, 3), (1.0, 5.0, 1), (0.5, 50.0, 5)])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(0, 1), slice(2, 3), slice(3, 5)])
def test_published_is_the_authors_arithmetic_in_loss_and_gradient(low: float, high: float, window: int, rows: slice) -> None:
    batch = batch_of(*alone()[rows])
    config = CALConfig(mode="published", low=low, high=high, window=window)
    found, expected = [], []
    for seed in range(3):
        ours, theirs = Table(batch, seed), Table(batch, seed)
        loss = config.build()(ours, batch)
        assert loss.weight.item() == 1.0
        loss.total.backward()
        reference = authors(theirs, batch, low, high, window)
        reference.backward()
        found.extend([loss.total.item(), ours.seeing.grad, ours.head.grad])
        expected.extend([reference.item(), theirs.seeing.grad, theirs.head.grad])
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_what_another_row_holds_changes_the_authors_weights_at_its_border_and_never_those_of_clean() -> None:
    batch = batch_of([sample(2, [5], num_images=2)], [sample(1, [4])])
    own = batch.supervision.sample_S == 0
    clean, published = [], []
    for sign in (1.0, -1.0):
        model = Table(batch)
        with torch.no_grad():
            model.seeing[1] *= sign
            clean.append(weights_of(model, batch, CALConfig())[own])
            loss = CALConfig(mode="published").build()(model, batch)
        published.append(loss.parts["weight_mean"][0].item())
    assert torch.equal(*clean)
    assert published[0] != published[1]


def test_published_refuses_packed_rows() -> None:
    with pytest.raises(ConfigError, match=r"one sample per row.*data\.pack=false"):
        PublishedCAL(CALConfig(mode="published"))(vlm("siglip", "llama"), batch_of(the_samples()[:2]))


# Weights --------------------------------------------------------------------------------------------------------------------------


def weights_of(model: Any, batch: Batch, config: CALConfig) -> Tensor:
    """Each token's weight: the gradient of the loss with respect to its own cross-entropy, by the definition of the loss."""
    cal = CAL(config)
    blind, counts = cal.blind_logits(model, batch)
    hidden = model.hidden(batch)
    gain = target_logits(hidden.states_SD, hidden.head, batch.supervision.target_S).detach() - blind
    expected = []
    for index in range(len(gain)):
        half = config.window // 2
        near = [n for n in range(index - half, index + half + 1) if 0 <= n < len(gain)]
        near = [n for n in near if batch.supervision.span_S[n] == batch.supervision.span_S[index]]
        values = [min(max(gain[n].item(), config.low), config.high) if counts[n] else 1.0 for n in near]
        expected.append(sum(values) / len(values))
    return torch.tensor(expected, dtype=gain.dtype)


@pytest.mark.parametrize(
    "config", [CALConfig(), CALConfig(low=0.2, high=1.7, window=5), CALConfig(window=1, high=50.0), CALConfig(low=2.0)]
)
def test_the_loss_is_the_weighted_sum_of_the_paper_with_weights_averaged_inside_spans(config: CALConfig) -> None:
    model = vlm("siglip", "llama")
    batch = batch_of(the_samples()[:3], the_samples()[3:])
    with torch.no_grad():
        loss = CAL(config)(model, batch)
        hidden = model.hidden(batch)
        nll = F.cross_entropy(hidden.states_SD @ hidden.head.weight_VD.T, batch.supervision.target_S, reduction="none")
    weight = weights_of(model, batch, config)
    assert weight.std() > 0.1
    assert loss.weight.item() == pytest.approx(weight.sum().item(), rel=1e-5)
    assert loss.total.item() == pytest.approx((weight * nll).sum().item(), rel=1e-5)
    assert loss.parts["cross_entropy"][0].item() == pytest.approx(nll.sum().item(), rel=1e-5)
    assert loss.parts["weight_mean"][0].item() / len(nll) == pytest.approx(weight.mean().item(), rel=1e-5)


def test_smoothing_by_hand() -> None:
    values, spans = torch.tensor([1.0, 4.0, 1.0, 5.0, 3.0, 2.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    assert pool_within_spans(values, spans, 3).tolist() == [2.5, 2.0, 2.5, 4.0, 4.0, 2.0]
    assert pool_within_spans(values, spans, 1).tolist() == values.tolist()
    assert pool_within_spans(values[:0], spans[:0], 3).tolist() == []


def test_clamped_to_1_it_is_next_token_to_the_bit() -> None:
    config = CALConfig(low=1.0, high=1.0)
    batch = batch_of(the_samples()[:3], the_samples()[3:], [])
    ends: list[tuple[Loss, dict[str, Tensor]]] = []
    for objective in (config.build(), NextToken()):
        model = vlm("siglip", "llama")
        loss = objective(model, batch)
        loss.total.backward()
        ends.append((loss, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}))
    (ours, mine), (plain, theirs) = ends
    assert torch.equal(ours.total, plain.total)
    assert torch.equal(ours.weight, plain.weight)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_weights_carry_no_gradient() -> None:
    """Scaling every weight's reason (the blind logits) moves the loss, never the direction of one token's gradient."""
    batch = batch_of([sample(1, [1])])
    grads = []
    for objective in (CALConfig(low=3.0, high=3.0).build(), NextToken()):
        model = vlm("siglip", "llama")
        loss = objective(model, batch)
        (loss.total / loss.weight).backward()
        grads.append(model.language.lm_head.weight.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-7)


def test_a_sample_without_image_has_gain_0_by_rule_and_weight_1_whatever_the_clamp() -> None:
    model = vlm("siglip", "llama")
    config = CALConfig(low=2.0, high=5.0)
    text = batch_of([sample(3, [6], num_images=0), sample(4, [2], num_images=0)])
    loss = CAL(config)(model, text)
    plain = NextToken()(model, text)
    assert torch.equal(loss.total, plain.total)
    assert torch.equal(loss.weight, plain.weight)
    assert loss.parts["gain"][1].item() == 0
    mixed = batch_of([sample(3, [6], num_images=0), sample(1, [4])])
    _, counts = CAL(config).blind_logits(model, mixed)
    assert counts.tolist() == [False] * 6 + [True] * 4
    assert weights_of(model, mixed, config)[:6].tolist() == [1.0] * 6
    assert CAL(config)(model, mixed).weight.item() >= 6 + 4 * 2


# The pass without image -----------------------------------------------------------------------------------------------------------


def with_masked_images(batch: Batch) -> Batch:
    """The full-length batch in which nothing but image slots sees an image slot: they are a sample of their own."""
    assert batch.visual is not None
    sample_of = batch.tokens.sample_BT.clone()
    sample_of.view(-1)[batch.visual.slot_M] = 99
    return replace(batch, tokens=replace(batch.tokens, sample_BT=sample_of, is_plain=False))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("packed", [True, False])
def test_the_pass_on_text_alone_is_the_masked_full_length_pass_in_float64(kind: str, kernel: str, packed: bool) -> None:
    """But for tokens that an image slot predicts: those are predicted from the last text, or not at all."""
    model = vlm("siglip", kind, attention=kernel).double()
    samples = the_samples()
    batch = batch_of(samples[:3], samples[3:]) if packed else batch_of(*alone())
    assert batch.visual is not None
    with Exact(), torch.no_grad():
        blind, counts = CAL(CALConfig()).blind_logits(model, batch)
        hidden = model.hidden(with_masked_images(batch))
        masked = target_logits(hidden.states_SD, hidden.head, batch.supervision.target_S)
        seeing = model.hidden(batch)
        seen = target_logits(seeing.states_SD, seeing.head, batch.supervision.target_S)
    from_image = torch.isin(batch.supervision.slot_S, batch.visual.slot_M)
    compared = counts & ~from_image
    assert compared.sum() > 10
    assert (blind - masked)[compared].abs().max() < 1e-10  # measured at most 1e-14
    assert (blind - seen)[compared].abs().max() > 0.1  # and the image does matter
    expected = 3 if packed else 2  # both branches of sample 4 where they share a prefix, and the image that comes first
    assert int(from_image.sum()) == expected
    assert (~counts).sum() == 6 + 1  # the text-only sample, and the token that has nothing but an image before it


def test_a_token_right_behind_a_image_is_predicted_from_the_text_before_it() -> None:
    model = vlm("siglip", "llama", attention="eager").double()
    one = sample(4, [3], prompt=0)
    batch = batch_of([one])
    with Exact(), torch.no_grad():
        blind, counts = CAL(CALConfig()).blind_logits(model, batch)
        word = torch.tensor([[int(one.branches[0].ids[0])]])
        logits = model(input_ids=word).logits[0, 0]
    assert counts.all()
    assert blind[0].item() == pytest.approx(logits[batch.supervision.target_S[0]].item(), abs=1e-10)


def test_the_gain_of_an_image_that_nobody_can_see_is_0() -> None:
    """Its slots are there and keep their positions; its sample's own words do not look at them."""
    model = vlm("siglip", "llama", attention="eager").double()
    batch = batch_of([sample(1, [4, 2]), sample(2, [5], num_images=2)])
    with Exact(), torch.no_grad():
        blind, counts = CAL(CALConfig()).blind_logits(model, batch)
        loss = CAL(CALConfig(low=0.0, high=9.0))(model, replace(with_masked_images(batch), blind_logits_S=blind))
        hidden = model.hidden(with_masked_images(batch))
        gain = target_logits(hidden.states_SD, hidden.head, batch.supervision.target_S) - blind
    assert counts.all()
    assert gain.abs().max() < 1e-10
    assert loss.weight.item() == len(gain)  # none of them belongs to a sample with an image


def test_stored_logits_give_the_loss_of_computed_ones_and_nan_means_none() -> None:
    model = vlm("siglip", "llama")
    batch = batch_of(the_samples()[:3], the_samples()[3:])
    calls: list[bool] = []

    class Counted:
        def hidden(self, batch: Batch) -> Hidden:
            calls.append(batch.visual is None)
            return model.hidden(batch)

    with torch.no_grad():
        computed = CAL(CALConfig())(Counted(), batch)
        blind, counts = CAL(CALConfig()).blind_logits(model, batch)
        stored = torch.where(counts, blind, torch.full_like(blind, float("nan")))
        assert calls == [True, False]
        again = CAL(CALConfig())(Counted(), replace(batch, blind_logits_S=stored))
        assert calls == [True, False, False]
    assert torch.equal(computed.total, again.total)
    assert torch.equal(computed.weight, again.weight)


# Other images -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", ["masked", "blurred", "shuffled"])
def test_the_other_contrasts_compare_with_the_changed_image(contrast: Any) -> None:
    model = vlm("siglip", "llama")
    batch = batch_of(the_samples()[:3], the_samples()[3:])
    config = CALConfig(contrast=contrast, mask_ratio=0.5, blur_sigma=30.0)
    with torch.no_grad():
        torch.manual_seed(5)
        blind, counts = CAL(config).blind_logits(model, batch)
        torch.manual_seed(5)
        hidden = model.hidden(with_changed_images(batch, contrast, 0.5, 30.0))
        expected = target_logits(hidden.states_SD, hidden.head, batch.supervision.target_S)
        removed, _ = CAL(CALConfig()).blind_logits(model, batch)
    assert torch.equal(blind[counts], expected[counts])
    assert int((~counts).sum()) == 6  # the text-only sample; a token behind an image alone is predicted from another image
    assert not torch.allclose(blind[counts], removed[counts])


def test_masking_covers_the_share_of_cells_that_it_should_with_the_mean_colour() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 40, 60, 3), dtype=torch.uint8)
    masked = mask_cells(images, 0.7)
    mean = images.float().mean((1, 2), keepdim=True).round().to(torch.uint8).expand_as(images)
    covered = (masked == mean).all(-1)
    assert torch.equal(masked[~covered], images[~covered])
    cells = covered.view(3, 10, 4, 20, 3).all(4).all(2)
    assert cells.sum((1, 2)).tolist() == [140] * 3
    assert not torch.equal(cells[0], cells[1])
    assert torch.equal(mask_cells(images, 1.0), mean)


def test_blurring_is_a_gaussian_with_repeated_edges() -> None:
    images = torch.from_numpy(pictures(3, 2))
    sigma, radius = 2.0, 6
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    expected = images.numpy().astype(np.float64)
    for axis in (1, 2):
        padded = np.pad(expected, [(radius, radius) if n == axis else (0, 0) for n in range(4)], mode="edge")
        expected = sum(tap * np.take(padded, range(n, n + expected.shape[axis]), axis) for n, tap in enumerate(taps))
    difference = np.abs(blur(images, sigma).numpy().astype(np.float64) - expected)
    assert difference.max() <= 0.501  # rounded to bytes


def test_shuffling_gives_each_image_to_the_next_and_a_lone_one_has_no_gain() -> None:
    batch = batch_of([sample(1, [4])], [sample(2, [5], num_images=2)])
    changed = with_changed_images(batch, "shuffled", 0.5, 1.0)
    assert batch.visual is not None
    assert changed.visual is not None
    assert batch.visual.pixels_NHWC is not None
    assert torch.equal(changed.visual.pixels_NHWC, batch.visual.pixels_NHWC[[2, 0, 1]])
    lone = batch_of([sample(1, [4])])
    model = vlm("siglip", "llama")
    with torch.no_grad():
        loss, plain = CAL(CALConfig(contrast="shuffled"))(model, lone), NextToken()(model, lone)
    assert torch.equal(loss.total, plain.total)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 6.0}, "low=6.0 is above high=5.0"),
        ({"window": 2}, "window=2 must be odd"),
        ({"mode": "published", "contrast": "masked"}, "needs contrast='removed'"),
        ({"low": -1.0}, "greater than or equal to 0"),
        ({"mask_ratio": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CALConfig(**fields)


def test_only_what_depends_on_the_text_alone_is_stored() -> None:
    build: Callable[..., CALConfig] = CALConfig
    assert build().stores_blind_logits
    assert not build(stored=False).stores_blind_logits
    assert not build(contrast="masked").stores_blind_logits
    assert not build(mode="published").stores_blind_logits
    assert build(mode="published").needs_padded_rows
