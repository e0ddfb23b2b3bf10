"""Timings of ops and of denoisers, beside a copy of the same bytes and beside other libraries."""
