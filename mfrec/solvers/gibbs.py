"""Bayesian matrix factorization by Gibbs sampling, where a draw costs as much as a sweep of ALS.

    y(i, j) − μ ~ N(θ̃_j · x̃_i, 1/(α τ_j τ_i w))   α ~ Gamma(a, b), τ ~ Gamma(c, c)         ratings, with weights w
    P_j ~ N(m, diag(λ)⁻¹)                         λ_c ~ Gamma(a, b), m_c ~ N(0, 1/λ_c)    each entity's own rows
    W_f ~ N(0, diag(λ′)⁻¹)                        λ′_c ~ Gamma(a, b)                      each block of feature weights

Precisions are diagonal instead of full.  The ratings of some users and items are noisier than others', hence the
precision scales τ_j and τ_i.

    Salakhutdinov & Mnih 2008, "Bayesian probabilistic matrix factorization using Markov chain Monte Carlo"
    Lakshminarayanan, Bouchard & Archambeau 2011, "Robust Bayesian matrix factorisation"

Given all else, a term's W̃ is Gaussian.  Its mean is the minimum of the ridge regression (`mfrec.model.ridge`) with
weights v = τ_j τ_i w and penalty Λ/α.  Its precision is αH, with H the Hessian.  A draw is the minimum of a
perturbed problem (Papandreou & Yuille 2010, "Gaussian sampling by local perturbations"):

    W̃ = H⁻¹ (Fᵀ (v (y − μ + ε)) X̃ + (Λ/α)(m + η))        ε_n ~ N(0, 1/(α v_n)),  η_c ~ N(0, 1/λ_c)

since the right-hand side has the mean H E[W̃] and the covariance H/α.  Nothing is factorized, conjugate gradients solve
all rows at once from where the last sweep left them, and features cost as much as in ALS.

The conjugate posterior of λ_c and m_c given the n rows of P, with their mean p̄ and m_c | λ_c as above:

    λ_c ~ Gamma(a + n/2, b + ½ Σ_j (P_jc − p̄)² + ½ n/(n+1) p̄²),    m_c ~ N(n p̄/(n+1), 1/((n+1) λ_c))

The others, with α over all n ratings and τ_j over the user's n_j (τ_i likewise):

    λ′_c ~ Gamma(a + n/2, b + ½ Σ_f W_fc²)
    α ~ Gamma(a + n/2, b + ½ Σ v e²)
    τ_j ~ Gamma(c + n_j/2, c + ½ α Σ_i τ_i w e²)

Session biases have a prior and draws of their own, in `mfrec.posteriors.session_draws`.

The squared error of the mean of S draws is about c/S above that of infinitely many draws.  Several chains from
different starts explore more of the posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.errors import OptionError
from mfrec.model.entity import ITEM, USER, initial_factors
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.partial_state import TableMap, map_model_state
from mfrec.posteriors.ordinal_samples import OrdinalSamples, random_pairs
from mfrec.posteriors.samples import PosteriorSamples
from mfrec.solvers.base import Solver
from mfrec.solvers.convergence import Traces
from mfrec.solvers.gibbs_chain import Chain
from mfrec.solvers.ordinal_chain import OrdinalChain
from mfrec.solvers.registry import GibbsOptions

# Scores that are traced to see how well the chains have converged.
TRACED = 64


class Gibbs(Solver):
    """Bayesian matrix factorization by Gibbs sampling.

    An epoch is a sweep of every chain.  After it the model is the last draw of the first chain.  Predictions average
    over the draws of all chains after the burn-in.

    Attributes:
        chains: the first one samples `model`; each has a generator of its own.

    Raises:
        OptionError: the likelihood is ordinal, and the ratings are partitioned over processes.
    """

    options: GibbsOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        options = self.options
        if self.ratings.is_partitioned and options.likelihood == "ordinal":
            raise OptionError("likelihood", "must be gaussian in several processes; for ordinal use one process")
        kind = OrdinalChain if options.likelihood == "ordinal" else Chain
        self.chains: list[Chain] = [kind(self.model, self.ratings, options, self.generator)]
        for _ in range(1, options.chains):
            seed = int(torch.randint(2**62, (), generator=self.generator))
            generator = torch.Generator().manual_seed(seed)
            self.chains.append(kind(_restarted(self.model, self.ratings, generator), self.ratings, options, generator))
        self.samples = self._empty_samples()
        self.traces = Traces()
        self.epochs = 0

    def _empty_samples(self) -> PosteriorSamples:
        options, chain = self.options, self.chains[0]
        arguments = self.model, options.samples, options.homoscedastic, options.freedom()
        if not isinstance(chain, OrdinalChain):
            is_partial = self.ratings.held_rows is not None
            return PosteriorSamples(*arguments, ratings=self.ratings if is_partial else None)
        latents = chain.latents
        return OrdinalSamples(*arguments, levels=latents.levels, cutpoints=latents.cutpoints, pairs=self._pairs)

    @cached_property
    def _pairs(self) -> Tensor:
        """(2, n) users and items whose scores are followed over the draws."""
        return random_pairs(self.ratings)

    def inference(self) -> PosteriorSamples:
        return self.samples

    @torch.no_grad()
    def epoch(self) -> dict[str, float]:
        for chain in self.chains:
            chain.sweep()
        self.epochs += 1
        if self.epochs > self.options.burn_in:
            for chain in self.chains:
                self._keep(chain)
            traced = [chain.traced(*self._pairs[:, :TRACED]) for chain in self.chains]
            self.traces.draws.append(torch.stack(traced).cpu())
        elif isinstance(self.samples, OrdinalSamples) and isinstance(self.chains[0], OrdinalChain):
            self.samples.set_state(self.chains[0].latents.cutpoints, self.chains[0].precision_scales)
        return {"noise_std": self.chains[0].alpha ** -0.5}

    def _keep(self, chain: Chain) -> None:
        precision = None if chain.sessions is None else chain.sessions.precision
        state = chain.alpha, chain.precision_scales, chain.priors
        if isinstance(self.samples, OrdinalSamples) and isinstance(chain, OrdinalChain):
            cutpoints = chain.latents.cutpoints
            self.samples.add(*state, model=chain.model, session_precision=precision, cutpoints=cutpoints)
        else:
            self.samples.add(*state, model=chain.model, session_precision=precision)

    def diagnostics(self) -> dict[str, float]:
        """The largest R̂ and the smallest effective sample size; see `mfrec.solvers.convergence`."""
        return self.traces.diagnostics()

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "chains": [chain.state_dict() for chain in self.chains],
            # The first chain's model is saved as the solver's.
            "models": [chain.model.state_dict() for chain in self.chains[1:]],
            "samples": self.samples.state_dict(),
            "traces": self.traces.state_dict(),
        }

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        return {
            **state,
            "chains": [
                chain.map_tables(saved, change) for chain, saved in zip(self.chains, state["chains"], strict=True)
            ],
            "models": [map_model_state(model, change) for model in state["models"]],
            "samples": self.samples.map_tables(state["samples"], change),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]
        for chain, model in zip(self.chains[1:], state["models"], strict=True):
            chain.model.load_state_dict(model)
        for chain, saved in zip(self.chains, state["chains"], strict=True):
            chain.load_state_dict(saved)
        self.samples.load_state_dict(state["samples"])
        self.traces.load_state_dict(state["traces"])


def _restarted(model: MatrixFactorization, ratings: Ratings, generator: torch.Generator) -> MatrixFactorization:
    """The model with other initial factors of the same size and random signs."""
    features = [{name: block.features for name, block in entity.feature_blocks.items()} for entity in model.entities]
    sessions = None if model.sessions is None else model.sessions.sessions
    copied = MatrixFactorization.from_state_dict(
        model.state_dict(), user_features=features[USER], item_features=features[ITEM], sessions=sessions
    )
    with torch.no_grad():
        for entity, held in zip(copied.entities, ratings.held_rows or (None, None), strict=True):
            if entity.factors is not None:
                weight = entity.factors.weight
                # These draw the numbers of all rows and keep those of the held ones.
                draw = partial(initial_factors, "small-normal", nonnegative=False, generator=generator)
                normals = draw(len(weight), rank=model.rank, dtype=weight.dtype, held=held)
                weight.mul_(normals.sign().to(weight))
    return copied
