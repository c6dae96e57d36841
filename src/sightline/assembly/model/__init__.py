"""One model from a configuration or a folder."""
