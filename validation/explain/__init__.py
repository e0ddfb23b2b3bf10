"""Two kernels of one op whose bits differ, explained: where their arithmetic first parts, in words.

One output element of each is followed back through the PTX that was executed, to the elements that it was computed
from: `trace` records a CTA, `graph` builds the arithmetic of the element, `evaluate` computes it again, `sums` and
`steps` find its sums and its quantities, `align` holds two against each other, `words` says how they differ.
"""
