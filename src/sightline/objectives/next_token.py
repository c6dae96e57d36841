"""`next_token`: the cross-entropy of each supervised token given the tokens before it."""

from typing import Literal

import torch

from sightline.objectives.auxiliary import with_auxiliary
from sightline.objectives.base import HiddenStateModel, Objective, ObjectiveConfig
from sightline.ops.cross_entropy import linear_cross_entropy
from sightline.types import Batch, Loss


class NextTokenConfig(ObjectiveConfig):
    """`L = sum_s -log p(t_s | t_<s) / S` over all supervised tokens of a step."""

    kind: Literal["next_token"] = "next_token"

    def build(self) -> Objective:
        return NextToken()


class NextToken:
    """The standard language-model loss; `total` is the sum over supervised tokens, `weight` their number."""

    def __call__(self, model: HiddenStateModel, batch: Batch) -> Loss:
        hidden = model.hidden(batch)
        nll_S, _ = linear_cross_entropy(hidden.states_SD, hidden.head, batch.supervision.target_S)
        weight = torch.full((), float(len(nll_S)), dtype=torch.get_default_dtype(), device=nll_S.device)
        return with_auxiliary(Loss(total=nll_S.sum(), weight=weight, parts=by_source(nll_S.detach(), batch)), hidden)


def by_source(
    values_S: torch.Tensor, batch: Batch, weight_S: torch.Tensor | None = None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Sums values and counts per data source of a mixture: `nll/0`, `nll/1`, ..., and `weight/0`, ... if tokens have weights.

    Also returned for a micro-batch of the first source alone, because other micro-batches of the step may hold other sources.
    """
    source_S = batch.supervision.source_S
    num_sources = batch.supervision.num_sources
    if len(source_S) and not num_sources:
        num_sources = int(source_S.max()) + 1

    def summed(column_S: torch.Tensor) -> torch.Tensor:
        return column_S.new_zeros(num_sources).index_add(0, source_S, column_S)

    counts = summed(torch.ones_like(values_S))
    columns = {"nll": values_S} if weight_S is None else {"nll": values_S, "weight": weight_S}
    return {
        f"{name}/{number}": (sums[number], counts[number])
        for name, sums in ((name, summed(column)) for name, column in columns.items())
        for number in range(num_sources)
    }
