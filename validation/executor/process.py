"""A child process of an isolated executor: forked where kernels run on the CPU, started anew on a GPU."""

import os
from pathlib import Path

from validation.forking.forked import Process, fork, spawn
from validation.forking.server import Order


def start(descriptors: tuple[int, int, int, int], folder: Path, *, forked: bool) -> Process:
    """Start a child in a session of its own, so that its children die with it.

    Its output goes to stderr, and its stdin is empty: nobody would see a prompt. It takes over our sys.path once it
    has imported what it needs itself.

    Args:
        descriptors: its arguments, as `validation.executor.child.serve` takes them.
        folder: its current folder.
        forked: whether to fork it from a process that has imported torch and Triton; CUDA does not survive a fork.
    """
    if not forked:
        return spawn("validation.executor.child", descriptors, folder=folder)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        return fork(Order("validation.executor.child", "serve", (), str(folder), {}), (null, 2, 2), descriptors)
    finally:
        os.close(null)
