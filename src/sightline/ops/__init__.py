"""Pure tensor functions. Each fused one has its plain reference implementation in the same file."""
