"""`moe`: a mixture of expert MLPs; each patch passes through a few of them."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sightline.models.connectors.base import ConnectorConfig, ConnectorShape, HasAuxiliaryLoss, HasLogValues, Words
from sightline.models.connectors.mlp import MLP
from sightline.ops.experts import ExpertWeights, can_group, experts_grouped, grouped_by_default


class MoEConfig(ConnectorConfig):
    """`v = sum_i g_i MLP_i(f)` over the `top` experts with the largest gates (CuMo, Li et al. 2024, section 3).

        p = softmax(W f) over X experts,   g = p of the `top` largest, divided by their sum

    In training two auxiliary losses are added, as in CuMo: `balance X sum_i s_i m_i`, where `s_i` is the share of tokens whose
        first
    choice is expert i (no gradient) and `m_i` the mean of `p_i`, and `z_loss mean logsumexp(W f)^2`. Both are means over the visual
    tokens of a micro-batch; the model returns them in `Hidden.auxiliary`.

    Differs: experts are initialised at random, not as copies of a trained MLP (CuMo's upcycling).
    """

    width_field: ClassVar[str] = "hidden"
    kind: Literal["moe"] = "moe"
    experts: int = Field(default=4, ge=1, le=256)
    """Number of experts."""
    top: int = Field(default=2, ge=1)
    """Number of experts that each token passes through."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden width of an expert; the decoder's width by default."""
    balance: float = Field(default=0.1, ge=0)
    """Coefficient of the load-balancing loss."""
    z_loss: float = Field(default=0.01, ge=0)
    """Coefficient of the router z-loss."""

    @model_validator(mode="after")
    def _enough(self) -> "MoEConfig":
        if self.top > self.experts:
            raise ValueError(f"top={self.top} is more than experts={self.experts}")
        return self

    def build(self, shape: ConnectorShape) -> nn.Module:
        return MoE(self, shape)


class MoE(nn.Module, HasAuxiliaryLoss, HasLogValues):
    """`v = sum_i g_i MLP_i(f)`."""

    def __init__(self, config: MoEConfig, shape: ConnectorShape) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(shape.width_in, config.experts, bias=False)
        hidden = config.hidden or shape.width_out
        self.experts = nn.ModuleList(MLP(shape.width_in, hidden, shape.width_out, 2, True) for _ in range(config.experts))
        self._share: Tensor | None = None

    def forward(self, features_NKF: Float[Tensor, "N K F"], words: Words) -> Float[Tensor, "N K D"]:
        return self.tokens_and_losses(features_NKF, words)[0]

    def tokens_and_losses(
        self, features_NKF: Float[Tensor, "N K F"], words: Words
    ) -> tuple[Float[Tensor, "N K D"], dict[str, Tensor]]:
        tokens_TF = features_NKF.flatten(0, 1)
        logits_TX = self.router(tokens_TF).float()
        p_TX = torch.softmax(logits_TX, 1)
        gates, chosen = p_TX.topk(self.config.top, 1)
        gates = gates / gates.sum(1, keepdim=True)
        has_losses = self.training and len(tokens_TF) > 0 and not tokens_TF.is_meta
        losses = self._losses(logits_TX, p_TX, chosen[:, 0]) if has_losses else {}
        if grouped_by_default(tokens_TF) and can_group(tokens_TF, weights := self._stacked()):
            mixed = experts_grouped(tokens_TF, chosen, gates, weights)
        else:
            mixed = self._one_by_one(tokens_TF, torch.zeros_like(p_TX).scatter(1, chosen, gates), chosen, words)
        return mixed.unflatten(0, features_NKF.shape[:2]), losses

    def _stacked(self) -> ExpertWeights:
        """Returns the weights of all experts in one tensor per layer."""

        def stacked(name: str) -> Tensor:
            return torch.stack([expert.get_parameter(f"linears.{name}") for expert in self.experts])

        up, down = stacked("0.weight"), stacked("1.weight")
        return ExpertWeights(up, down, nn.functional.gelu, None, stacked("0.bias"), stacked("1.bias"))

    def _one_by_one(self, tokens_TF: Tensor, gate_TX: Tensor, chosen: Tensor, words: Words) -> Float[Tensor, "T D"]:
        """Applies one expert after the other, each to its tokens; on a GPU this waits for the device once per expert."""
        parts = []
        for number, expert in enumerate(self.experts):
            rows = self._rows(chosen, number)
            out = expert(tokens_TF.index_select(0, rows)[None], words)[0]
            parts.append((rows, out * gate_TX[:, number].index_select(0, rows)[:, None].to(out.dtype)))
        mixed = parts[0][1].new_zeros(len(tokens_TF), parts[0][1].shape[1])
        for rows, out in parts:
            mixed = mixed.index_add(0, rows, out)
        return mixed

    def _rows(self, chosen: Tensor, number: int) -> Tensor:
        """Returns the tokens of an expert; on the meta device, where nothing is chosen, as many as under equal use."""
        if chosen.is_meta:
            return torch.arange(-(-chosen.numel() // self.config.experts), device="meta")
        return (chosen == number).any(1).nonzero().squeeze(1)

    def _losses(self, logits_TX: Tensor, p_TX: Tensor, first_T: Tensor) -> dict[str, Tensor]:
        numbers_X = torch.arange(self.config.experts, device=first_T.device)  # `bincount` would wait for the device
        share_X = (first_T[:, None] == numbers_X).sum(0).to(p_TX.dtype) / max(len(first_T), 1)
        balance = self.config.experts * (share_X * p_TX.mean(0)).sum()
        z = logits_TX.logsumexp(1).square().mean()
        self._share = share_X  # only for the log
        return {"balance": self.config.balance * balance, "router_z": self.config.z_loss * z}

    def log_values(self) -> dict[str, float | Tensor]:
        """Returns the largest share of tokens with the same first choice; 1 / experts when all are used equally."""
        return {} if self._share is None else {"largest_expert": self._share.max()}
