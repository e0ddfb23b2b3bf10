"""Validation of fused GPU ops: op parity, model drift and sampled output, judged by one rule."""
