"""Level one: is the op right for every shape, layout, dtype and value regime?"""
