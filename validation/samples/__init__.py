"""Sampled output: what a model says of itself, and how two samples are compared."""
