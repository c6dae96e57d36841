"""Checks of values in the configurations of Sightline's own models, which may come from a file of others."""

import math
from typing import Any

MAX_SIZE = 1 << 16


def listed(name: str, values: Any) -> list[Any]:
    """Returns a list or tuple of a configuration as a list; raises a ValueError where it is neither, or empty."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name}={values!r} is no list")
    return list(values)


def check_counts(counts: dict[str, Any], low: int) -> None:
    """Raises a ValueError where a count or size of a configuration is no whole number from `low` to 65,536."""
    for name, value in counts.items():
        if type(value) is not int or not low <= value <= MAX_SIZE:
            raise ValueError(f"{name}={value!r} is no whole number from {low} to {MAX_SIZE}")


def check_normalisation(mean: list[Any], std: list[Any], factor: Any) -> None:
    """Raises a ValueError where the numbers that normalise images are not three finite ones each, or divide by 0."""
    numbers = [*mean, *std, factor]
    is_number = all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
    if len(mean) != 3 or len(std) != 3 or not is_number or 0 in std:
        raise ValueError(f"image_mean={mean}, image_std={std}, rescale_factor={factor!r} are not finite numbers for three channels")
