"""Pure tensor functions. Every fused one stands beside its plain reference in the same file."""
