"""Opening, preparing and tiling images."""
