"""The bits that a GPU must give, written before there is one, and compared with what it gives.

A compiled kernel without ``.approx`` is specified to the bit: its PTX has additions, products and fused multiply-adds
that round as IEEE 754 says, and ptxas contracts nothing in our kernels (`validation.compiled.ptx.sass`). `predict`
executes the PTX on the CPU at the real workloads, and keeps hashes of inputs, kernels and outputs; `confirm` makes the
same calls on another device, and says which of the hashes hold.
"""
