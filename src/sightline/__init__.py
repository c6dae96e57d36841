"""Sightline: train, measure and compare how vision is aligned to language.

    import sightline as sl

    model = sl.load("runs/flickr")
    print(model.generate("photo.jpg"))

`load`, `evaluate`, `look`, `compare` and `train` are those of `sightline.api`, which is imported at the first use of one of them:
`import sightline` alone loads neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

from sightline.runtime.auto_classes import register_on_demand

__version__ = "0.1.0"
__all__ = ["Model", "compare", "evaluate", "load", "look", "train"]

register_on_demand()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("sightline.api"), name)
    raise AttributeError(f"module 'sightline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
