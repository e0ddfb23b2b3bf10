"""PTX, as Triton's compiler wrote it, executed on the CPU with NumPy.

`parse` reads the text, `table` and its neighbours hold what each opcode means by its exact spelling, `machine` runs a
grid over `memory`, which checks every access, and `executing` takes the launches that Python code makes.

Nothing here was compared with hardware. Meanings come from the PTX ISA document; the tests hold them against libm,
exact integers and fractions, and Triton's interpreter. PTX is not what a GPU runs: ptxas translates it once more, and
what it does there (register spills, its own contraction of products and sums) is not seen.
"""
