"""Matrix factorization for explicit ratings: two sparse products, one objective, every solver.

generator = torch.Generator().manual_seed(0)
dataset = mfrec.datasets.load("ml-latest-small")
train, valid = dataset.ratings.split(dataset.test_mask("random", 0.1, generator))
model = mfrec.model.MatrixFactorization.from_ratings(train, rank=64, scale=dataset.scale, generator=generator)
objective = mfrec.objective.Objective(l2=1.0, scaling="sqrt")
solver = mfrec.solvers.SOLVERS["sgd"](model, train, objective, generator=generator)
mfrec.fit.fit(model, solver, objective, train, valid, epochs=100)
"""
