"""Truth, legal roundings, error statistics, budget, verdict."""
