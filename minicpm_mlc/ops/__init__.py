"""The operators: each file holds the float64 NumPy definition of one operator, then the builder of
its TIR.
"""
