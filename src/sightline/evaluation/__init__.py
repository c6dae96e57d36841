"""Predictions on held-out records, their scores, and controls that show whether the image matters."""
