"""Auxiliary losses that the model itself adds to the objective, such as the load balancing of experts."""

from dataclasses import replace

from sightline.types import Hidden, Loss


def with_auxiliary(loss: Loss, hidden: Hidden) -> Loss:
    """Adds the auxiliary losses of `hidden` to a loss, each times the loss's weight, because the loop divides by that weight.

    Its values for the log become parts of the loss that do not count.

    An auxiliary loss is a mean over a micro-batch. Gradient accumulation averages the micro-batches by their weights, which differs
    from one mean over all their tokens.
    """
    if not hidden.auxiliary and not hidden.values:
        return loss
    total, parts = loss.total, dict(loss.parts)
    parts |= {name: (value * loss.weight, loss.weight) for name, value in hidden.values.items()}
    for name, value in hidden.auxiliary.items():
        total = total + value * loss.weight
        parts[name] = (value.detach() * loss.weight, loss.weight)
    return replace(loss, total=total, parts=parts)
