"""From records to token ids: templates, label mask, prompts, length table."""
