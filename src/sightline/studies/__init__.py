"""Studies of many runs: sweeps, comparisons and the demo. Their pages are drawn by `sightline.reporting`."""
