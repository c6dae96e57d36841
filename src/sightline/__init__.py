"""Sightline: train, measure and compare how vision is aligned to language."""

__version__ = "0.1.0"
