"""Posterior samples: draws θ_s, x_s of all parameters, and the mean of their predictions as one model.

For a new user and each draw, the items' τ_i are in the weights w, and R = λ/α and m are the draw's prior.  τ and θ are
drawn in turn, as in `mfrec.solvers.gibbs`, with Σ w (r − θ · x̃)² = c − 2 bᵀθ + θᵀAθ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.draws import standard_gamma, standard_normal
from mfrec.errors import InputError
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.objective import Objective
from mfrec.model.pair_products import pair_dots
from mfrec.model.partial_state import TableMap, map_model_state, map_pair
from mfrec.model.session_biases import SESSION_BIAS, SessionBiases, prior_variances
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE, Posterior, without_features
from mfrec.posteriors.new_rows import Conditional, NewRows, RowStatistics, SolvedRows
from mfrec.posteriors.product_mean import ProductMean
from mfrec.posteriors.session_draws import SessionDraws
from mfrec.sparse import sddmm

# Draws of τ and a new row for each draw of the trained parameters; they start where the last draw's ended.
TURNS = 3


class Draw(NamedTuple):
    """A draw of everything that was sampled.

    parameters: the model's parameters by name.
    alpha: α, the precision of the noise.
    precision_scales: τ of users and of items, (n, 1) each.
    priors: λ and m, (k,) each, of every term of the model.
    session_precision: λ of the session biases of each gap, (n_gaps,); None without sessions.
    """

    parameters: dict[str, Tensor]
    alpha: float
    precision_scales: list[Tensor]
    priors: list[list[Tensor]]
    session_precision: Tensor | None = None

    def to(self, device: torch.device) -> Draw:
        """This draw on another device."""
        return self._replace(
            parameters={name: parameter.to(device) for name, parameter in self.parameters.items()},
            precision_scales=[tensor.to(device) for tensor in self.precision_scales],
            priors=[[tensor.to(device) for tensor in prior] for prior in self.priors],
            session_precision=None if self.session_precision is None else self.session_precision.to(device),
        )


class PosteriorSamples(Posterior):
    """Samples of a model's parameters, and the mean of the predictions of all of them.

    The mean is over every draw added.  At most `max_draws` draws are kept, evenly spread, for standard deviations and
    new rows.

    Args:
        model: the model whose parameters are drawn; all draws share its features, offset and rating range.
        max_draws: how many draws to keep; when full, every second draw is dropped and the stride doubles.
        homoscedastic: whether τ is 1 for all users and items.
        session_freedom: ν of the prior of session biases; None for a Gaussian.
        ratings: the training ratings, if tables are partial: sums over rows go through them.
    """

    kind: ClassVar[str] = "samples"

    def __init__(
        self,
        model: MatrixFactorization,
        max_draws: int,
        homoscedastic: bool = False,
        session_freedom: float | None = None,
        *,
        ratings: Ratings | None = None,
    ) -> None:
        self.model, self.max_draws, self.homoscedastic = model, max_draws, homoscedastic
        self.session_freedom = session_freedom
        self.mean, self.stride = ProductMean(model, ratings), 1
        self.draws: list[Draw] = []

    @torch.no_grad()
    def add(
        self,
        alpha: float,
        precision_scales: Sequence[Tensor],
        priors: Sequence[Sequence[Tensor]],
        expected: tuple[Tensor, Tensor] | None = None,
        *,
        model: MatrixFactorization | None = None,
        session_precision: Tensor | None = None,
    ) -> None:
        """Add a model's parameters as a draw, with the draws of α, of τ, and of each term's λ and m.

        Args:
            model: by default `model`; another chain has its own.
            session_precision: λ of the session biases of each gap, (n_gaps,), if the model has any.
            expected: augmented factors whose product is the draw's expected prediction given all else, if it is known.
                The mean over draws uses it, since it varies less (Rao–Blackwell); standard deviations use the draw.
        """
        model = self.model if model is None else model
        if self.mean.n % self.stride == 0:
            parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
            copied = [list(prior) for prior in priors]
            precision = None if session_precision is None else session_precision.clone()
            self.draws.append(Draw(parameters, alpha, list(precision_scales), copied, precision))
        session_bias = None if model.sessions is None else model.sessions.bias.weight
        self.mean.add(*(expected or model.augmented_factors()), session_bias)
        if len(self.draws) > self.max_draws:
            self.draws, self.stride = self.draws[::2], 2 * self.stride

    @torch.no_grad()
    def mean_model(self) -> MatrixFactorization:
        """The model, of several times the rank, that predicts the mean of the draws; without draws, the model."""
        return self.mean.mean_model() if self.mean.n else self.model

    @property
    def has_std(self) -> bool:
        """Whether there is a draw yet."""
        return bool(self.draws)

    def require_std(self) -> None:
        """Check that there is a draw.

        Raises:
            InputError: there is none.
        """
        if not self.draws:
            raise InputError("the sampler kept no samples: it stopped within its burn-in; train it for more epochs")

    @torch.no_grad()
    def std(
        self, users: Tensor, items: Tensor, *, timestamps: Tensor | None = None, include_noise: bool = True
    ) -> Tensor:
        """(n,) √(variance between the predictions of the kept draws + mean variance of the noise).

        A rating in no session has the variance of the prior of session biases.

        Args:
            timestamps: (n,) seconds since 1970; without them, the variance of that prior counts as noise.
            include_noise: False leaves out the noise.

        Raises:
            InputError: there is no draw, or an index is not in the model.
        """
        self.require_std()
        total = squares = variance = torch.zeros(len(users), dtype=torch.float64, device=self.model.device)
        sessions = self._sessions_at(users, timestamps)
        for draw in self.draws:
            product = pair_dots(*self.model.augmented_factors(draw.parameters), users, items).double()
            if sessions is not None and (include_noise or timestamps is not None):
                bias, unseen = self._session_moments(draw, sessions)
                product, variance = product + bias, variance + unseen
            total, squares = total + product, squares + product.square()
            if include_noise:
                user_tau, item_tau = draw.precision_scales
                variance = variance + 1 / (draw.alpha * pair_dots(user_tau, item_tau, users, items).double())
        n = len(self.draws)
        spread = (squares - total.square() / n).clamp_min(0) / max(n - 1, 1)
        std: Tensor = (spread + variance / n).sqrt()
        return std.to(self.model.dtype)

    def _sessions_at(self, users: Tensor, timestamps: Tensor | None) -> Tensor | None:
        """(n_gaps, n) the sessions of ratings; −1 for none, and without timestamps.  None in a model without any."""
        if self.model.sessions is None:
            return None
        sessions = self.model.sessions.sessions
        if timestamps is None:
            return torch.full((len(sessions.gaps), len(users)), -1, device=self.model.device)
        return sessions.at(users, timestamps).to(self.model.device)

    def _session_moments(self, draw: Draw, sessions: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) the biases that a draw has for sessions, (n_gaps, n), and the prior's variance of those without."""
        assert draw.session_precision is not None
        bias = draw.parameters[SESSION_BIAS][:, 0].double()
        variances = prior_variances(draw.session_precision.double(), self.session_freedom)
        if not len(bias):
            return torch.zeros_like(sessions[0], dtype=torch.float64), variances.sum().expand(sessions.shape[1])
        biases = torch.where(sessions >= 0, bias[sessions.clamp_min(0)], 0)
        return biases.sum(0), torch.where(sessions >= 0, 0, variances[:, None]).sum(0)

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> MatrixFactorization:
        """One of the kept draws, each with the same probability, as a model without features.

        Raises:
            InputError: there is no draw.
        """
        self.require_std()
        return self._model_of(self.draws[int(torch.randint(len(self.draws), (), generator=generator))])

    def trace(self) -> Iterator[tuple[MatrixFactorization, float]]:
        """The kept draws in their order, each as a model without features, with the noise's standard deviation."""
        return ((self._model_of(draw), draw.alpha**-0.5) for draw in self.draws)

    def _model_of(self, draw: Draw) -> MatrixFactorization:
        session_bias = draw.parameters.get(SESSION_BIAS)
        return without_features(self.model, *self.model.augmented_factors(draw.parameters), session_bias)

    def prior(self, draw: Draw, entity: int) -> list[Tensor]:
        """λ and m, (k,) each, of an entity's own rows; an infinite λ if it has only its features."""
        for term, prior in zip(self.model.all_terms, draw.priors, strict=True):
            if term.entity == entity and term.features is None:
                return prior
        zeros = torch.zeros_like(self.model.free_columns()[entity][0])
        return [torch.full_like(zeros, torch.inf), zeros]

    def conditionals(self, new_rows: NewRows, generator: torch.Generator | None = None) -> Iterator[Conditional]:
        """The conditional of the new rows for each kept draw.

        Raises:
            InputError: there is no draw.
        """
        self.require_std()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        # τ and session biases go on from draw to draw, which is why a few turns for each suffice.
        tau = torch.ones(new_rows.n_rows, 1, dtype=self.model.dtype, device=self.model.device)
        sessions = None
        if new_rows.sessions is not None:
            biases = SessionBiases(new_rows.sessions, self.model.dtype).to(self.model.device)
            sessions = SessionDraws(biases, new_rows.ratings, self.session_freedom)
        for draw in self.draws:
            prior = self.prior(draw, new_rows.entity)
            turns = 1 if self.homoscedastic else TURNS
            yield SampledRows(new_rows, draw, prior, tau, turns, generator, sessions)

    def folded(self, new_rows: NewRows, solved: Iterable[SolvedRows]) -> PosteriorSamples:
        """Samples of the new rows and their partners, whose mean is that of the draws' expected predictions."""
        samples: PosteriorSamples | None = None
        for draw, rows in zip(self.draws, solved, strict=True):
            session_bias = draw.parameters.get(SESSION_BIAS) if new_rows.entity == ITEM else rows.session_bias
            model = new_rows.model(rows.sample, rows.partners, session_bias)
            if samples is None:
                samples = PosteriorSamples(model, len(self.draws), self.homoscedastic, self.session_freedom)
            samples.model = model
            tau = new_rows.users_first(rows.precision_scales, draw.precision_scales[1 - new_rows.entity])
            priors = [self.prior(draw, entity) for entity in (USER, ITEM)]
            expected = new_rows.users_first(rows.mean, rows.partners)
            precision = None if model.sessions is None else draw.session_precision
            samples.add(draw.alpha, tau, priors, expected, session_precision=precision)
        assert samples is not None
        return samples

    def state_dict(self) -> dict[str, Any]:
        """The kept draws, and the mean over all that were added."""
        return {
            "kind": self.kind,
            "max_draws": self.max_draws,
            "homoscedastic": self.homoscedastic,
            "session_freedom": self.session_freedom,
            "stride": self.stride,
            "draws": [draw._asdict() for draw in self.draws],
            "mean": self.mean.state_dict(),
        }

    def map_tables(self, state: Mapping[str, Any], change: TableMap) -> dict[str, Any]:
        draws = [
            {
                **draw,
                "parameters": map_model_state(draw["parameters"], change),
                "precision_scales": map_pair(draw["precision_scales"], change),
            }
            for draw in state["draws"]
        ]
        return {**state, "draws": draws, "mean": self.mean.map_tables(state["mean"], change)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`, on the model's device; `max_draws` stays as it is."""
        self.homoscedastic, self.stride = state["homoscedastic"], state["stride"]
        self.session_freedom = state.get("session_freedom")
        self.draws = [Draw(**draw).to(self.model.device) for draw in state["draws"]]
        self.mean.load_state_dict(state["mean"])

    @classmethod
    def from_state(cls, state: Mapping[str, Any], model: MatrixFactorization, objective: Objective) -> PosteriorSamples:
        """The samples around their model, on its device."""
        samples = cls(model, state["max_draws"])
        samples.load_state_dict(state)
        return samples


class SampledRows(Conditional):
    """New rows drawn given one draw of the trained parameters.

    Args:
        prior: λ and m of the new rows, (k,) each; an infinite λ keeps them at their base.
        tau: (n_rows, 1) where τ starts; solving changes it in place.
        turns: how many times to draw τ and the rows in turn; with one, τ stays as it is.
        sessions: the session biases of new users, drawn in place.
    """

    session_turns = TURNS

    def __init__(
        self,
        new_rows: NewRows,
        draw: Draw,
        prior: Sequence[Tensor],
        tau: Tensor,
        turns: int,
        generator: torch.Generator,
        sessions: SessionDraws | None = None,
    ) -> None:
        tau_of_partners = draw.precision_scales[1 - new_rows.entity]
        super().__init__(new_rows, draw.parameters, tau_of_partners, None if sessions is None else sessions.biases)
        self.session_draws = sessions
        if sessions is not None and draw.session_precision is not None:
            sessions.precision = draw.session_precision
        self.alpha, self.tau, self.turns, self.generator = draw.alpha, tau, turns, generator
        self.precision, self.prior_mean = (tensor[new_rows.columns] for tensor in prior)
        self.has_own_rows = bool(torch.isfinite(prior[0]).all())

    def ridge(self, rows: slice, tau: Tensor) -> Tensor:
        """λ/α."""
        return self.precision / self.alpha

    def solve_sessions(self, errors: Tensor, tau: Tensor) -> None:
        """Draw the biases given the draw's prior."""
        assert self.session_draws is not None
        weights = self.view.weighted(sddmm(self.view.pattern, tau, torch.ones_like(self.partners[:, :1])))
        self.session_draws.draw(errors, weights, self.alpha, self.generator, learn=False)

    def solve_block(self, statistics: RowStatistics) -> SolvedRows:
        """The rows and their τ drawn in turn; the mean is given the last τ."""
        rows = statistics.rows
        for _ in range(self.turns):
            tau = self.tau[rows].clone()
            mean, factor = statistics.minimum(tau, self.ridge(rows, tau), self.prior_mean)
            normal = standard_normal(mean.shape, mean, self.generator)
            turned = torch.linalg.solve_triangular(factor.mT, normal[..., None], upper=True)[..., 0]
            sample = mean + turned * self.alpha**-0.5
            if self.turns > 1:
                rate = PRECISION_SCALE_SHAPE + 0.5 * self.alpha * statistics.errors(sample).double()
                shape = PRECISION_SCALE_SHAPE + 0.5 * statistics.counts.double()
                self.tau[rows] = (standard_gamma(shape, self.generator) / rate).to(mean.dtype)
        return SolvedRows(mean, sample, torch.zeros_like(mean), tau, self.partners)
