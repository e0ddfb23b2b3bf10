"""Timings: what is fast, beside what the memory allows and what others need for the same."""
