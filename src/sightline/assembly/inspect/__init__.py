"""Looking at data under a configuration."""
