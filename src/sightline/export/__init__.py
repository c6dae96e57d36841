"""Model folders in the forms that other programs read."""
