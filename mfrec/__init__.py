"""Matrix factorization for explicit ratings: two sparse products, one objective, every solver.

dataset = mfrec.datasets.load("ml-latest-small")
train, test = dataset.ratings.split(dataset.test_mask("random", 0.1, generator))
model = mfrec.MatrixFactorization.from_ratings(train, rank=64, scale=dataset.scale, generator=generator)
objective = mfrec.Objective(l2=1.0, scaling="sqrt")
solver = mfrec.SOLVERS["sgd"](model, train, objective, generator=generator)
mfrec.fit(model, solver, objective, train, epochs=40)
"""

from mfrec import datasets
from mfrec.fit import fit
from mfrec.model import MatrixFactorization
from mfrec.objective import Objective
from mfrec.ratings import Ratings
from mfrec.solvers import SOLVERS

__all__ = ["SOLVERS", "MatrixFactorization", "Objective", "Ratings", "datasets", "fit"]
