"""The inputs of an op: cases, strategies, layouts, value regimes, corners."""
