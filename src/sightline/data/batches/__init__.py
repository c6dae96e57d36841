"""From samples to batches: epoch order, packing, collation, loading."""
