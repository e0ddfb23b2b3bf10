"""What a compiled kernel asks of a GPU, counted without one, and the least time that this takes.

`watch` counts while PTX is executed, `latency` follows one warp, `footprint` knows the sectors of a tensor, `launch`
counts a launch by some of its CTAs, `gpus` holds what GPUs can do at most, each number with its source. A count is the
same on every machine. A time made of them is a bound, never a measurement: nothing here was compared with hardware.
"""
