"""The compiled kernel, without a GPU: compiled ahead of time, and read."""
