"""Continuations of a cached prefix have the log-probabilities of whole rows without a cache."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sightline.errors import ConfigError
from sightline.generation import continuations
from sightline.generation.continuations import Continuations
from sightline.models.text import TextModel
from sightline.models.vlm import SightlineForConditionalGeneration
from sightline.types import Sample
from tests.builders import DECODERS, Exact, apart, batch_of, decoder, sample, vlm

TEXTS = [4, 2, 7, 1, 5, 3]


def plain(model: SightlineForConditionalGeneration, one: Sample) -> list[float]:
    """Each branch in a forward pass of its own, through transformers' own attention; all logits, torch's softmax."""
    found = []
    for part in apart(one):
        (encoded,) = part.branches
        ids = torch.from_numpy(encoded.ids)[None].clone()
        ids[0, torch.from_numpy(part.image_slots)] = model.config.image_token_id
        pixels = None if part.images is None else model.normalise(torch.from_numpy(part.images))
        logits: Tensor = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0].log_softmax(-1)
        places = [place for span in encoded.spans for place in range(span.start, span.end)]
        found.append(sum(float(logits[place - 1, int(encoded.ids[place])]) for place in places))
    return found


@pytest.mark.parametrize("kind", DECODERS)
def test_continuations_equal_rows_without_a_cache(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "CHUNK_TOKENS", 8)  # several chunks, of several branches each
    model, one = vlm("siglip", kind).double().eval(), sample(3, TEXTS, num_images=2)
    with torch.no_grad(), Exact():
        cached = Continuations(model, one)
        assert cached.log_probabilities() == pytest.approx(plain(model, one), abs=1e-9)
        assert cached.log_probabilities(2) == pytest.approx(cached.log_probabilities()[:2], abs=1e-9)  # the prefix is as before


def test_images_are_encoded_once_and_the_prefix_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "CHUNK_TOKENS", 8)
    model, one = vlm("siglip", "llama").eval(), sample(3, TEXTS)
    widths: list[int] = []
    encoded: list[int] = []
    model.vision.register_forward_pre_hook(lambda module, given: encoded.append(1))
    layer = model.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda module, given: widths.append(given[0].shape[1]))
    with torch.no_grad():
        Continuations(model, one).log_probabilities()
    assert len(encoded) == 1
    assert len(widths) > 3
    assert sum(widths) == one.num_tokens  # no token is computed twice


def test_a_text_model_scores_continuations() -> None:
    model = TextModel(decoder("llama")).eval().double()
    one = sample(5, [3, 2], num_images=0)
    with torch.no_grad(), Exact():
        hidden = model.hidden(batch_of([one]))
        logits = (hidden.states_SD @ hidden.head.weight_VD.T).log_softmax(-1)
        ids = [torch.from_numpy(encoded.ids[-encoded.num_supervised :]) for encoded in one.branches]
        wanted = [float(part.gather(1, own[:, None]).sum()) for part, own in zip(logits.split([3, 2]), ids, strict=True)]
        assert Continuations(model, one).log_probabilities() == pytest.approx(wanted, abs=1e-9)


def test_branches_without_a_common_prefix_are_refused() -> None:
    model = vlm("siglip", "llama")
    with pytest.raises(ConfigError, match="the chat template puts a caption before its image"):
        Continuations(model, replace(sample(3, TEXTS), prefix=0))
