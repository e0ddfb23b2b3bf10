"""What to feed an op: cases, strategies, layouts, value regimes, corners."""
