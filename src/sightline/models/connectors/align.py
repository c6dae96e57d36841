"""`align`: AlignVLM's connector, whose visual tokens are mixtures of the decoder's own word embeddings."""

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

    `W2` begins as a copy of the decoder's head and trains apart from it; `E_text` are the decoder's input embeddings, live. The
    softmax is in fp32. Tokens that were added to the vocabulary (`<image>`, tiles) are outside of the simplex.

    The paper leaves open: biases, whether the norms are affine, how W1 begins. `LN2` with a gain of 1 gives scores of deviation 1
    over the words: for normal scores of deviation g the perplexity is `V exp(-g^2 / 2)`, at g = 1 that is 0.61 V, and every
    visual token is nearly the mean word. The paper reports 3.4K of 128K words in use, which takes a gain; so ours is learned. It
    begins at 2.7, where `exp(-g^2 / 2)` is that share (2.6 %).

    Differs: one learned gain for all words where a layer norm has one per word (`outer_norm=per_word`), which starts from 2.7
    and not from 1.
    """

    kind: Literal["align"] = "align"
    bias: bool = False
    """Bias of W1; the SmolVLM port has one."""
    inner_affine: bool = True
    """Learned scale and shift in LN1, as a layer norm has; the SmolVLM port has none."""
    outer_norm: Literal["scalar", "per_word", "unit", "none"] = "scalar"
    """LN2: with one learned gain, with gain and shift per word, without (gain 1), or no norm at all (the SmolVLM port)."""
    initial_gain: float = Field(default=2.7, gt=0)
    """Where a learned gain begins."""
    head: Literal["copy", "random"] = "copy"
    """W2 begins as a copy of the decoder's head, or at random (the SmolVLM port)."""
    live: bool = True
    """Gradient flows through the mixture to the word embeddings when the decoder trains them."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the variance in both norms."""
    compute: Literal["fused", "plain"] = "fused"
    """Chunk by chunk, or with the whole `[tokens, words]` tensor; the same value."""

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
        self._allowed: Tensor | None = None  # no buffer: it belongs to an evaluation, not to the weights

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N K D"]:
        query_NKD = self.inner(self.w1(features_NKF))
        words_VD = words() if self.config.live else words().detach()
        mix = vocabulary_attention if self.config.compute == "fused" else vocabulary_attention_reference
        mixed = mix(query_NKD.flatten(0, 1), self.w2.weight, words_VD, self._outer(), self._mask())
        return mixed.unflatten(0, query_NKD.shape[:2])

    def adopt_head(self, head_VD: Float[Tensor, "V D"]) -> None:
        """Makes W2 a copy of the head's rows of the decoder's own words.

        Raises:
            ConfigError: the head is of another width than the embeddings.
        """
        if self.config.head == "random":
            return
        num_words, width = self.w2.weight.shape
        if len(head_VD) < num_words or head_VD.shape[1] != width:
            raise ConfigError(
                f"the decoder's head is [{len(head_VD)}, {head_VD.shape[1]}], align's W2 is [{num_words}, {width}].",
                "Set model.connector.head=random.",
            )
        with torch.no_grad():
            self.w2.weight.copy_(head_VD[:num_words])

    def restrict(self, word_ids: Sequence[int] | None) -> None:
        """Allows only some words outside of training (AlignVLM, table 4); LN2 still runs over all of them.

        Raises:
            ConfigError: there is no word, or one that is not in the vocabulary.
        """
        if word_ids is None:
            self._allowed = None
            return
        num_words = self.w2.out_features
        odd = [word for word in word_ids if not 0 <= word < num_words]
        if odd or not word_ids:
            raise ConfigError(f"{odd[0] if odd else 'no word'} is not among the {num_words} words that align mixes.")
        allowed = torch.zeros(num_words, dtype=torch.bool)
        allowed[torch.tensor(list(word_ids))] = True
        self._allowed = allowed

    def distribution(self, features_NKF: Float[Tensor, "N K F"], top: int, threshold: float = 1e-6) -> WordDistribution:
        """The mixture of each visual token, tokens in raster order, one crop after the other."""
        query_NKD = self.inner(self.w1(features_NKF))
        return word_distribution(query_NKD.flatten(0, 1), self.w2.weight, self._outer(), self._mask(), top, threshold)

    def log_values(self) -> dict[str, float]:
        """The gain of the outer norm: its value, or its mean over the words."""
        norm = self._outer()
        return {} if norm is None else {"gain": float(norm.gain.detach().float().mean())}

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
