"""Kernels: loops over ratings that are compiled to machine code, for solvers whose inner loop is not two products."""
