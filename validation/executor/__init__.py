"""Executors: they run a candidate on a case."""

from validation.executor.base import DEATHS, Death, Executor
from validation.executor.in_process import InProcess
from validation.executor.isolated import Isolated
from validation.executor.loading import anew, limit_of, load

__all__ = ["DEATHS", "Death", "Executor", "InProcess", "Isolated", "anew", "limit_of", "load"]
