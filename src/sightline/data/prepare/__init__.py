"""Making a dataset folder: read, verify and store images, split, write shards."""
