"""Terms that the model itself adds to a loss: the balance of an expert connector, for example."""

from dataclasses import replace

from sightline.types import Hidden, Loss


def with_auxiliary(loss: Loss, hidden: Hidden) -> Loss:
    """The loss plus the terms of `hidden`, each times the loss's own weight, so that the step's division leaves them as they are.

    A term is a mean over a micro-batch; accumulation over several micro-batches averages it by their weights, which is not the same
    as one mean over all of them.
    """
    if not hidden.auxiliary:
        return loss
    total, parts = loss.total, dict(loss.parts)
    for name, value in hidden.auxiliary.items():
        total = total + value * loss.weight
        parts[name] = (value.detach() * loss.weight, loss.weight)
    return replace(loss, total=total, parts=parts)
