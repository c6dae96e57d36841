"""Feed-forward layers of the decoder: one dense MLP, or a mixture of which each token uses a few.

N tokens    C experts per token    X experts    D width    F hidden width
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from sightline.ops.experts import ExpertWeights, can_group, experts_grouped, experts_loop, grouped_by_default
from sightline.ops.precision import at_least_fp32


class FeedForward(nn.Module):
    """`down act(up x)`, or with a gate `down (act(gate x) * up x)`."""

    def __init__(self, config: Any, hidden: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.up_proj, self.down_proj = nn.Linear(width, hidden, config.bias), nn.Linear(hidden, width, config.bias)
        self.gate_proj = nn.Linear(width, hidden, bias=False) if config.gated else None
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class SparseMoE(nn.Module):
    """`y = sum over the chosen experts of share_i expert_i(x)`, plus a shared expert that every token uses if there is one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        self.shared = FeedForward(config, config.shared_expert_size) if config.shared_expert_size else None

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "N X"]]:
        """Returns the output, and the router's logits for its losses."""
        tokens_ND = x_BTD.flatten(0, 1)
        logits_NX, chosen_NC, share_NC = self.router(tokens_ND)
        out_ND = self.experts(tokens_ND, chosen_NC, share_NC)
        if self.shared is not None:
            out_ND = out_ND + self.shared(tokens_ND)
        return out_ND.view_as(x_BTD), logits_NX


class Router(nn.Module):
    """Noisy top-k gating (Shazeer et al. 2017, equations 3 to 5): `z = W x + noise * softplus(W_n x)`, noise from N(0, 1).

    The `num_experts_per_tok` experts with the largest `z` are chosen; of equal ones, those that come first. Their shares are the
    softmax over the chosen `z`. Noise explores in training; evaluation is deterministic unless `noise_in_evaluation` is set, as in
    the published seeMoE. Computes in fp32: rounding would change who is chosen.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_chosen = config.num_experts_per_tok
        self.score = nn.Linear(config.hidden_size, config.num_experts, config.bias)
        self.noise = nn.Linear(config.hidden_size, config.num_experts, config.bias) if config.router_noise else None
        self.noise_in_evaluation = config.noise_in_evaluation

    def forward(self, tokens_ND: Float[Tensor, "N D"]) -> tuple[Float[Tensor, "N X"], Int[Tensor, "N C"], Float[Tensor, "N C"]]:
        """Returns logits with their noise, the chosen experts, and their shares."""
        with torch.autocast(tokens_ND.device.type, enabled=False):
            tokens_ND = tokens_ND.to(self.score.weight.dtype)
            logits_NX = at_least_fp32(self.score(tokens_ND))
            if self.noise is not None and (self.training or self.noise_in_evaluation):
                logits_NX = logits_NX + torch.randn_like(logits_NX) * F.softplus(at_least_fp32(self.noise(tokens_ND)))
            # A stable sort and not `topk`, which promises nothing about equal values.
            chosen_NC = logits_NX.sort(dim=1, descending=True, stable=True).indices[:, : self.num_chosen]
            return logits_NX, chosen_NC, F.softmax(logits_NX.gather(1, chosen_NC), 1)


class Experts(nn.Module):
    """The weights of all experts in one tensor per layer, so that one kernel computes them all."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        number, width, hidden = config.num_experts, config.hidden_size, config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(number, hidden, width))
        self.down_proj = nn.Parameter(torch.empty(number, width, hidden))
        self.gate_proj = nn.Parameter(torch.empty(number, hidden, width)) if config.gated else None
        self.up_bias = nn.Parameter(torch.empty(number, hidden)) if config.bias else None
        self.down_bias = nn.Parameter(torch.empty(number, width)) if config.bias else None
        self.activation = ACT2FN[config.hidden_act]
        self.kernel = config.experts_kernel

    @property
    def weights(self) -> ExpertWeights:
        return ExpertWeights(self.up_proj, self.down_proj, self.activation, self.gate_proj, self.up_bias, self.down_bias)

    def forward(self, tokens_ND: Tensor, chosen_NC: Tensor, share_NC: Tensor) -> Float[Tensor, "N D"]:
        grouped = self.kernel == "grouped" or (self.kernel == "auto" and grouped_by_default(tokens_ND))
        compute = experts_grouped if grouped and can_group(tokens_ND, self.weights) else experts_loop
        return compute(tokens_ND, chosen_NC, share_NC, self.weights)
