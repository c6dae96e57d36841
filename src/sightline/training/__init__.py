"""The training loop, what trains in which stage, and checkpoints that survive anything."""
