"""Who runs a candidate on a case."""
