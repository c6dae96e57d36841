"""Stored outputs of a frozen encoder."""
