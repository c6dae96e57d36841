"""Frozen encoders and feature stores."""
