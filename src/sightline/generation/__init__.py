"""Generates text from prompts and images."""
