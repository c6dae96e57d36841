"""The only place where parts meet: the schema of a run, and functions that build models, data and training from it."""
