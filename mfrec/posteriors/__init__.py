"""What a solver inferred: predictions, standard deviations, samples, and the rows of new users and items.

May import from `mfrec.model`, `mfrec.data`, `mfrec.sparse`, `mfrec.options` and `mfrec.errors`.
"""
