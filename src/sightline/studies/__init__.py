"""Many runs as one piece of work: computed here, drawn by `sightline.reporting`."""
