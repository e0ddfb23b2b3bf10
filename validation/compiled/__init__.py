"""Kernels compiled ahead of time without a GPU, and read for faults."""
