"""Sightline: train, measure and compare how vision is aligned to language."""

from sightline.runtime.auto_classes import register_on_demand

__version__ = "0.1.0"

register_on_demand()
