"""Each op's chain of steps, written once over an abstract arithmetic, and the arithmetics that compute it.

`steps` is the abstract arithmetic, `chain` the ops over it. Interpreters: `arithmetic` (float32, the right variants),
`replay` (legal roundings), `placement` (where a candidate rounds), `bounds` (running error). An op without a chain
gets its replay and its bound from a tape of its reference (`tape`, `perturbed`).
"""
