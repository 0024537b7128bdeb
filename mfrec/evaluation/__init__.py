"""How good a model is: metrics, ranking metrics, monitored metrics, errors by group, baselines and figures.

This package imports from `mfrec.inference` and everything below it, and never from `mfrec.experiments`.
"""
