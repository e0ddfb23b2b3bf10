"""Sampled output: what a model declares about itself, and how two samples are compared."""
