"""`align`: AlignVLM's connector, whose visual tokens are mixtures of the decoder's input embeddings."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from sightline.errors import ConfigError
from sightline.models.connectors.base import (
    ConnectorConfig,
    ConnectorShape,
    HasLogValues,
    InitialisesFromHead,
    MixesVocabulary,
    Words,
)
from sightline.ops.vocabulary_attention import (
    OuterNorm,
    WordDistribution,
    vocabulary_attention,
    vocabulary_attention_reference,
    word_distribution,
)


class AlignConfig(ConnectorConfig):
    """`v = softmax(LN2(W2 LN1(W1 f))) E_text` (Masry et al. 2025, section 3.2).

    `W2` is initialised as a copy of the decoder's head and trained apart from it; `E_text` are the decoder's input embeddings (with
    gradient if `live`). The softmax is in fp32. Tokens added to the vocabulary (`<image>`, tiles) are not mixed.

    The paper leaves open: biases, whether the norms are affine, how W1 is initialised. `LN2` with a gain of 1 gives scores with
    standard deviation 1 over the vocabulary: for normal scores of deviation g the perplexity is `V exp(-g^2 / 2)`, at g = 1 that is
    0.61 V, and every visual token is nearly the mean embedding. The paper reports that 3.4K of 128K entries are used, which takes a
    gain; so the gain is learned here, from an initial 2.7, where `exp(-g^2 / 2)` is that share (2.6 %).

    Differs: one learned gain for all vocabulary entries where a layer norm has one per entry (`outer_norm=per_word`), initialised
        at
    2.7 instead of 1.
    """

    kind: Literal["align"] = "align"
    bias: bool = False
    """Use a bias in W1; the SmolVLM port does."""
    inner_affine: bool = True
    """Learned scale and shift in LN1, as in a layer norm; the SmolVLM port has none."""
    outer_norm: Literal["scalar", "per_word", "unit", "none"] = "scalar"
    """LN2: with one learned gain, with gain and shift per vocabulary entry, without (gain 1), or no norm (the SmolVLM port)."""
    initial_gain: float = Field(default=2.7, gt=0)
    """Initial value of a learned gain."""
    head: Literal["copy", "random"] = "copy"
    """Initialise W2 as a copy of the decoder's head, or at random (the SmolVLM port)."""
    live: bool = True
    """Let gradients flow through the mixture to the input embeddings when the decoder trains them."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in both norms."""
    compute: Literal["fused", "plain"] = "fused"
    """Compute in chunks, or with the full `[tokens, vocabulary]` tensor; both give the same value."""

    def build(self, shape: ConnectorShape) -> nn.Module:
        return Align(self, shape)


class Align(nn.Module, InitialisesFromHead, MixesVocabulary, HasLogValues):
    """`v = softmax(LN2(W2 LN1(W1 f))) E_text`."""

    def __init__(self, config: AlignConfig, shape: ConnectorShape) -> None:
        super().__init__()
        self.config = config
        width, num_words = shape.width_out, shape.num_words
        self.w1 = nn.Linear(shape.width_in, width, config.bias)
        self.inner = nn.LayerNorm(width, config.eps, config.inner_affine, config.inner_affine)
        self.w2 = nn.Linear(width, num_words, bias=False)
        if config.outer_norm == "scalar":
            self.gain = nn.Parameter(torch.full((), config.initial_gain))
        elif config.outer_norm == "per_word":
            self.gain = nn.Parameter(torch.full((num_words,), config.initial_gain))
            self.shift = nn.Parameter(torch.zeros(num_words))
        self._allowed: Tensor | None = None  # not a buffer: set for an evaluation, never saved

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N K D"]:
        query_NKD = self.inner(self.w1(features_NKF))
        words_VD = words() if self.config.live else words().detach()
        mix = vocabulary_attention if self.config.compute == "fused" else vocabulary_attention_reference
        mixed = mix(query_NKD.flatten(0, 1), self.w2.weight, words_VD, self._outer(), self._mask())
        return mixed.unflatten(0, query_NKD.shape[:2])

    def initialise_from_head(self, head_VD: Float[Tensor, "V D"]) -> None:
        """Initialises W2 as a copy of the head's rows for the decoder's original vocabulary.

        Raises:
            ConfigError: the head and the embeddings have different widths.
        """
        if self.config.head == "random":
            return
        num_words, width = self.w2.weight.shape
        if len(head_VD) < num_words or head_VD.shape[1] != width:
            raise ConfigError(
                f"the decoder's head is [{len(head_VD)}, {head_VD.shape[1]}], but align's W2 is [{num_words}, {width}].",
                "Set model.connector.head=random.",
            )
        with torch.no_grad():
            self.w2.weight.copy_(head_VD[:num_words])

    def restrict_vocabulary(self, word_ids: Sequence[int] | None) -> None:
        """Restricts the mixture to some vocabulary entries in evaluation (AlignVLM, table 4); LN2 still runs over all of them.

        Raises:
            ConfigError: no id is given, or an id is not in the vocabulary.
        """
        if word_ids is None:
            self._allowed = None
            return
        num_words = self.w2.out_features
        unknown = [word for word in word_ids if not 0 <= word < num_words]
        if unknown or not word_ids:
            raise ConfigError(
                f"token id {unknown[0]} is outside of the {num_words} vocabulary entries that align mixes."
                if unknown
                else "align needs at least one vocabulary entry to mix."
            )
        allowed = torch.zeros(num_words, dtype=torch.bool)
        allowed[torch.tensor(list(word_ids))] = True
        self._allowed = allowed

    def distribution(self, features_NKF: Float[Tensor, "N K F"], top: int, threshold: float = 1e-6) -> WordDistribution:
        """Returns the mixture weights of each visual token, in raster order, crop after crop."""
        query_NKD = self.inner(self.w1(features_NKF))
        return word_distribution(query_NKD.flatten(0, 1), self.w2.weight, self._outer(), self._mask(), top, threshold)

    def log_values(self) -> dict[str, float | Tensor]:
        """Returns the gain of the outer norm: its value, or its mean over the vocabulary."""
        norm = self._outer()
        return {} if norm is None else {"gain": norm.gain.detach().float().mean()}

    def _outer(self) -> OuterNorm | None:
        match self.config.outer_norm:
            case "none":
                return None
            case "unit":
                return OuterNorm(self.w2.weight.new_ones(()), eps=self.config.eps)
            case "scalar":
                return OuterNorm(self.gain, eps=self.config.eps)
            case "per_word":
                return OuterNorm(self.gain, self.shift, self.config.eps)

    def _mask(self) -> Tensor | None:
        if self._allowed is None or self.training:
            return None
        return self._allowed.to(self.w2.weight.device)
