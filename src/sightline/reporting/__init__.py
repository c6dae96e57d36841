"""What people look at: cards, tables, plots, pages. Nothing here computes a result or loads a model."""
