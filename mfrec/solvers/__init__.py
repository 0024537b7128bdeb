"""How a model is trained: one algorithm per module, the contract in `base`, the table of solvers in `registry`.

This package imports only `mfrec.posteriors` and what lies below it.
"""
