"""The configuration: schema, resolving, locating."""
