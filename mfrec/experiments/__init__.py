"""From a configuration to a run: training, resuming, run folders, loggers, cross-validation and tuning.

This package imports from `mfrec.evaluation` and everything below it, and never from `mfrec.estimator` or `mfrec.cli`.
"""
