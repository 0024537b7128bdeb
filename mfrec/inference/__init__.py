"""What a trained model answers: predictions, recommendations, similar items, reasons, and fold-in of new rows.

May import from `mfrec.solvers`, `mfrec.posteriors`, `mfrec.model` and `mfrec.data`.
"""
