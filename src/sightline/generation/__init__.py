"""From a prompt and pictures to text."""
