"""Log-probabilities of many continuations of one prompt, whose images and tokens are computed once."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.data.samples.prompts import Prompt
from sightline.errors import ConfigError
from sightline.generation.decode import embeddings
from sightline.models.language import DecodedPrefix, decode_branches, decode_prefix, head_of
from sightline.models.surface import SightModel
from sightline.ops.cross_entropy import linear_cross_entropy
from sightline.types import EncodedConversation, Sample

CHUNK_TOKENS = 512  # of continuations in one forward pass; the attention mask has (prefix + chunk)^2 entries


class Continuations:
    """The branches of a sample as continuations of their shared prefix, whose keys and values are kept.

    Args:
        model: on its device, in `eval` mode; called without gradients.
        sample: its branches share a prefix that holds all images and no supervised token.

    Raises:
        ConfigError: the prefix is empty, or the decoder cannot separate continuations.
    """

    def __init__(self, model: SightModel, sample: Sample) -> None:
        length = sample.prefix
        if length == 0:
            raise ConfigError(
                "the chat template puts a caption before its image, so captions share nothing.", "Name another model."
            )
        self.model, self.branches = model, sample.branches
        row = EncodedConversation(sample.branches[0].ids[:length], (), sample.image_slots)
        prompt = Prompt(row, sample.visual_index, sample.images, sample.features)
        ids = torch.from_numpy(row.ids)[None].to(model.inner.device)
        rows = embeddings(model, ids, [prompt], length) if prompt.num_crops else model.inner.get_input_embeddings()(ids)
        self.prefix: DecodedPrefix = decode_prefix(model.language, rows[0])

    def log_probabilities(self, count: int | None = None) -> list[float]:
        """Returns the sum of the log-probabilities of the supervised tokens of each branch.

        Args:
            count: of the first branches only.
        """
        return [value for chunk in self._chunks(count) for value in self._of(chunk)]

    def _chunks(self, count: int | None) -> Iterator[list[EncodedConversation]]:
        """Branches that are computed together; the same ones whatever was computed before."""
        chunk: list[EncodedConversation] = []
        tokens = 0
        for branch in self.branches[:count]:
            own = len(branch.ids) - self.prefix.length
            if chunk and tokens + own > CHUNK_TOKENS:
                yield chunk
                chunk, tokens = [], 0
            chunk.append(branch)
            tokens += own
        if chunk:
            yield chunk

    def _of(self, branches: Sequence[EncodedConversation]) -> list[float]:
        shared, device = self.prefix.length, self.model.inner.device
        ids = [torch.from_numpy(branch.ids[shared:]) for branch in branches]
        embedded = self.model.inner.get_input_embeddings()(torch.cat(ids).to(device))
        states = decode_branches(self.model.language, self.prefix, embedded, list(map(len, ids)))
        before, predicting, targets, counts = self.prefix.states_TD[-1:], [], [], []
        for branch, own in zip(branches, states.split(list(map(len, ids))), strict=True):
            with_last = torch.cat([before, own])  # its place t predicts the continuation's token t
            places = [place - shared for span in branch.spans for place in range(span.start, span.end)]
            predicting.append(with_last[places])
            targets.append(torch.from_numpy(branch.ids)[[place + shared for place in places]])
            counts.append(len(places))
        nll_S = self._nll(torch.cat(predicting), torch.cat(targets).to(device))
        return [-float(nll.double().sum()) for nll in nll_S.split(counts)]

    def _nll(self, states_SD: Float[Tensor, "S D"], target_S: Tensor) -> Float[Tensor, " S"]:
        return linear_cross_entropy(states_SD, head_of(self.model.language), target_S)[0]
