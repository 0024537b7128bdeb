"""The model, its objective, and the ridge regressions that its rows solve.

This package imports only `mfrec.data` and what lies below it.
"""
