"""Posterior samples of an ordinal likelihood: draws with cutpoints, and probabilities of each level.

    P(y = level k) = Φ(√v (γ_k − η)) − Φ(√v (γ_{k−1} − η))        η = θ̃ · x̃ + session biases,  v = τ_j τ_i w

One model stands for the mean over draws (`mfrec.model.ordinal`).  It has the means of γ, of η and of 1/τ.  To the
variance of the noise it adds V, the mean variance of the scores between the draws.  On MovieLens, its RMSE is within
0.0005 of that of the mean over all draws.

A constant that is added to γ and to all η of a draw changes no probability, and the prior hardly fixes it.  The means
of γ and of η share it, so that it cancels in their difference.  Variances are those of η less the draw's mean
cutpoint.

New rows are drawn given latents z of their ratings, which makes them those of a Gaussian likelihood with targets z.
The draws of the rows, of their τ and of z take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfrec.data.ratings import Ratings
from mfrec.draws import standard_gamma, standard_normal
from mfrec.errors import InputError
from mfrec.model.entity import ITEM, USER
from mfrec.model.factorization import MatrixFactorization
from mfrec.model.level_likelihood import truncated_normals
from mfrec.model.objective import Objective
from mfrec.model.ordinal import OrdinalFactorization
from mfrec.model.pair_products import pair_dots
from mfrec.model.session_biases import SESSION_BIAS, SessionBiases
from mfrec.posteriors.base import PRECISION_SCALE_SHAPE
from mfrec.posteriors.levels import level_names, nearest_levels
from mfrec.posteriors.new_rows import Conditional, NewRows, RowStatistics, SolvedRows
from mfrec.posteriors.samples import TURNS, Draw, PosteriorSamples, SampledRows
from mfrec.posteriors.session_draws import SessionDraws
from mfrec.sparse import sddmm, spmm

# The name of a draw's cutpoints among its parameters.
CUTPOINTS = "cutpoints"
# Pairs of a user and an item whose scores' variance is averaged.
N_PAIRS = 4096


def random_pairs(ratings: Ratings) -> Tensor:
    """(2, N_PAIRS) indices of the user of a random rating and of the item of another; always the same."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(ratings.n_ratings, (2, N_PAIRS), generator=generator).to(ratings.device)
    return torch.stack([ratings.pairs_at(positions[USER])[USER], ratings.pairs_at(positions[ITEM])[ITEM]])


class OrdinalSamples(PosteriorSamples):
    """Samples of the parameters and the cutpoints of an ordinal likelihood.

    Args:
        model, max_draws, homoscedastic, session_freedom: as in `PosteriorSamples`; the model predicts scores.
        levels: (K,) the possible ratings, ascending.
        cutpoints: (K − 1,) γ before the first draw.
        pairs: (2, n) users and items at which the variance of scores is averaged; see `random_pairs`.

    Attributes:
        cutpoints, precision_scales: γ, and τ of users and of items, of the present state of a sampler.  Before the
            first draw is added, predictions use them.
    """

    kind: ClassVar[str] = "ordinal-samples"
    # Its new rows are not linear in their ratings.
    explainable: ClassVar[bool] = False

    def __init__(
        self,
        model: MatrixFactorization,
        max_draws: int,
        homoscedastic: bool = False,
        session_freedom: float | None = None,
        *,
        levels: Tensor,
        cutpoints: Tensor,
        pairs: Tensor,
    ) -> None:
        super().__init__(model, max_draws, homoscedastic, session_freedom)
        self.levels, self.cutpoints, self.pairs = (t.to(model.device) for t in (levels, cutpoints.double(), pairs))
        ones = torch.ones(model.n_users + model.n_items, 1, dtype=torch.float64, device=model.device)
        self.precision_scales: list[Tensor] = list(ones.split([model.n_users, model.n_items]))
        # Over draws: of cutpoints, of 1/τ, and of the scores of the pairs with their squares.
        self.cutpoint_sum = torch.zeros_like(self.cutpoints)
        self.variance_sums = [torch.zeros_like(tau) for tau in self.precision_scales]
        self.score_sums = torch.zeros(2, self.pairs.shape[1], dtype=torch.float64, device=model.device)

    def set_state(self, cutpoints: Tensor, precision_scales: Sequence[Tensor]) -> None:
        """Set the present cutpoints and precision scales, by which predictions are made without draws."""
        self.cutpoints = cutpoints.to(self.model.device, torch.float64).clone()
        self.precision_scales = list(precision_scales)

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
        cutpoints: Tensor | None = None,
    ) -> None:
        """Add a draw, as in `PosteriorSamples`, with its cutpoints; by default, those that were set last."""
        self.set_state(self.cutpoints if cutpoints is None else cutpoints, precision_scales)
        factors = (self.model if model is None else model).augmented_factors()
        super().add(
            alpha,
            precision_scales,
            priors,
            factors if expected is None else expected,
            model=model,
            session_precision=session_precision,
        )
        # The one draw without cutpoints is the new one, if it is kept.
        self.draws[-1].parameters.setdefault(CUTPOINTS, self.cutpoints)
        self.cutpoint_sum = self.cutpoint_sum + self.cutpoints
        self.variance_sums = [
            total + 1 / tau.double() for total, tau in zip(self.variance_sums, precision_scales, strict=True)
        ]
        scores = pair_dots(*factors, *self.pairs).double() - self.cutpoints.mean()
        self.score_sums = self.score_sums + torch.stack([scores, scores.square()])

    @torch.no_grad()
    def mean_model(self) -> OrdinalFactorization:
        """The model that predicts expected ratings; without draws, that of the sampler's present state."""
        n = self.mean.n
        if not n:
            return self._ordinal(self.model, self.cutpoints, self.precision_scales)
        total, squares = self.score_sums
        spread = (squares - total.square() / n).clamp_min(0).sum() / max(n - 1, 1) / max(self.pairs.shape[1], 1)
        scales = [n / total for total in self.variance_sums]
        return self._ordinal(self.mean.mean_model(), self.cutpoint_sum / n, scales, spread)

    def _ordinal(
        self,
        model: MatrixFactorization,
        cutpoints: Tensor,
        precision_scales: Sequence[Tensor],
        spread: Tensor | float = 0.0,
    ) -> OrdinalFactorization:
        user_scales, item_scales = precision_scales
        return OrdinalFactorization(
            model,
            levels=self.levels,
            cutpoints=cutpoints,
            user_scales=user_scales,
            item_scales=item_scales,
            spread=spread,
        )

    def _model_of(self, draw: Draw) -> OrdinalFactorization:
        return self._ordinal(super()._model_of(draw), draw.parameters[CUTPOINTS], draw.precision_scales)

    @torch.no_grad()
    def std(
        self, users: Tensor, items: Tensor, *, timestamps: Tensor | None = None, include_noise: bool = True
    ) -> Tensor:
        """(n,) the standard deviation of the rating under the probabilities of the levels.

        Args:
            timestamps: (n,) seconds since 1970, for session biases.
            include_noise: False gives the standard deviation of the expected rating between the kept draws.

        Raises:
            InputError: there is no draw, or an index is not in the model.
        """
        self.require_std()
        if include_noise:
            probabilities, levels = self.level_probabilities(users, items, timestamps=timestamps), self.levels.double()
            mean = probabilities @ levels
            return (probabilities * (levels - mean[:, None]).square()).sum(1).sqrt().to(self.model.dtype)
        total = squares = torch.zeros(len(users), dtype=torch.float64, device=self.model.device)
        for draw in self.draws:
            prediction = self._model_of(draw).predict(users, items, timestamps=timestamps).double()
            total, squares = total + prediction, squares + prediction.square()
        n = len(self.draws)
        return ((squares - total.square() / n).clamp_min(0) / max(n - 1, 1)).sqrt().to(self.model.dtype)

    @torch.no_grad()
    def level_probabilities(
        self, users: Tensor, items: Tensor, levels: Tensor | None = None, timestamps: Tensor | None = None
    ) -> Tensor:
        """(n, K) the probability of each level at each (user, item) index pair, in float64; each row adds up to 1.

        Args:
            levels: (K,) ascending, by default `levels`; a possible rating that is not among them counts as the nearest.
            timestamps: (n,) seconds since 1970.  A rating in no session, or without a time, has the variance of the
                prior of session biases.

        Raises:
            InputError: there is no draw, or an index is not in the model.
        """
        self.require_std()
        model, variance = self.mean_model(), torch.zeros(len(users), dtype=torch.float64, device=self.model.device)
        scores = model.scores_model().predict(users, items, timestamps=timestamps)
        sessions = self._sessions_at(users, timestamps)
        if sessions is not None:
            unseen = [self._session_moments(draw, sessions)[1] for draw in self.draws]
            variance = variance + sum(unseen) / len(unseen)
        users, items = users.to(scores.device), items.to(scores.device)
        probabilities = model.level_probabilities(scores, users, items, variance)
        if levels is None:
            return probabilities
        wanted = torch.zeros(len(users), len(levels), dtype=torch.float64, device=scores.device)
        return wanted.index_add(1, nearest_levels(self.levels, levels.to(scores.device)), probabilities)

    def conditionals(self, new_rows: NewRows, generator: torch.Generator | None = None) -> Iterator[Conditional]:
        """The conditional of the new rows for each kept draw.

        Raises:
            InputError: there is no draw, or a new rating is not a level.
        """
        self.require_std()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        # τ, latents and session biases go on from draw to draw, which is why a few turns for each suffice.
        tau = torch.ones(new_rows.n_rows, 1, dtype=self.model.dtype, device=self.model.device)
        level, cutpoints = self._positions(new_rows), self.draws[0].parameters[CUTPOINTS]
        middle = cutpoints.mean().to(tau.dtype).expand(len(level))
        latents = truncated_normals(middle, torch.ones_like(middle), level, cutpoints, generator)
        sessions = None
        if new_rows.sessions is not None:
            biases = SessionBiases(new_rows.sessions, self.model.dtype).to(self.model.device)
            sessions = SessionDraws(biases, new_rows.ratings, self.session_freedom)
        for draw in self.draws:
            prior, turns = self.prior(draw, new_rows.entity), 1 if self.homoscedastic else TURNS
            yield OrdinalRows(new_rows, draw, prior, tau, turns, generator, sessions, level=level, latents=latents)

    def _positions(self, new_rows: NewRows) -> Tensor:
        """(n_entries,) int8, the position of each new rating's level, in the order of the new rows."""
        values = _by_row(new_rows, new_rows.ratings.values)
        position, levels = nearest_levels(values, self.levels), self.levels.to(values)
        wrong = values[levels[position] != values]
        if len(wrong):
            raise InputError(
                f"new ratings must be one of {', '.join(level_names(self.levels))}, as in training "
                f"(got {level_names(wrong[:1])[0]}); round them"
            )
        return position.to(torch.int8)

    def folded(self, new_rows: NewRows, solved: Iterable[SolvedRows]) -> OrdinalSamples:
        """Samples of the new rows and their partners, whose mean is that of the draws' expected scores."""
        samples: OrdinalSamples | None = None
        for draw, rows in zip(self.draws, solved, strict=True):
            session_bias = draw.parameters.get(SESSION_BIAS) if new_rows.entity == ITEM else rows.session_bias
            model = new_rows.model(rows.sample, rows.partners, session_bias)
            cutpoints = draw.parameters[CUTPOINTS]
            if samples is None:
                shared, pairs = (self.homoscedastic, self.session_freedom), _all_pairs(model)
                samples = OrdinalSamples(
                    model, len(self.draws), *shared, levels=self.levels, cutpoints=cutpoints, pairs=pairs
                )
            samples.model = model
            tau = new_rows.users_first(rows.precision_scales, draw.precision_scales[1 - new_rows.entity])
            priors = [self.prior(draw, entity) for entity in (USER, ITEM)]
            expected = new_rows.users_first(rows.mean, rows.partners)
            precision = None if model.sessions is None else draw.session_precision
            samples.add(draw.alpha, tau, priors, expected, session_precision=precision, cutpoints=cutpoints)
        assert samples is not None
        return samples

    def state_dict(self) -> dict[str, Any]:
        """The kept draws, and the means over all that were added."""
        return super().state_dict() | {
            "levels": self.levels,
            "cutpoints": self.cutpoints,
            "precision_scales": list(self.precision_scales),
            "pairs": self.pairs,
            "cutpoint_sum": self.cutpoint_sum,
            "variance_sums": list(self.variance_sums),
            "score_sums": self.score_sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`, on the model's device; `max_draws` stays as it is."""
        super().load_state_dict(state)
        device = self.model.device
        self.levels, self.cutpoints, self.pairs, self.cutpoint_sum, self.score_sums = (
            state[name].to(device) for name in ("levels", "cutpoints", "pairs", "cutpoint_sum", "score_sums")
        )
        self.precision_scales, self.variance_sums = (
            [tensor.to(device) for tensor in state[name]] for name in ("precision_scales", "variance_sums")
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any], model: MatrixFactorization, objective: Objective) -> OrdinalSamples:
        """The samples around their model, on its device."""
        levels, cutpoints, pairs = state["levels"], state["cutpoints"], state["pairs"]
        samples = cls(model, state["max_draws"], levels=levels, cutpoints=cutpoints, pairs=pairs)
        samples.load_state_dict(state)
        return samples


def _all_pairs(model: MatrixFactorization) -> Tensor:
    """(2, n) random pairs of any user and any item; always the same."""
    generator, sizes = torch.Generator().manual_seed(0), (model.n_users, model.n_items)
    return torch.stack([torch.randint(size, (N_PAIRS,), generator=generator) for size in sizes])


def _by_row(new_rows: NewRows, values: Tensor) -> Tensor:
    """(n_entries,) values of the new ratings, in the order of the new rows."""
    order = new_rows.ratings.pattern.transpose_order
    return values if new_rows.entity == USER else values.index_select(0, order)


class OrdinalRows(SampledRows):
    """New rows drawn given one draw of the trained parameters and the cutpoints.

    The targets are latents less the effects: offset and session biases of trained users.

    Args:
        prior, tau, turns, sessions: as in `SampledRows`; latents are drawn at every turn, and with one, τ is not.
        level: (n_entries,) int8, the position of each rating's level, in the order of the new rows.
        latents: (n_entries,) where z starts; solving changes it in place.
    """

    def __init__(
        self,
        new_rows: NewRows,
        draw: Draw,
        prior: Sequence[Tensor],
        tau: Tensor,
        turns: int,
        generator: torch.Generator,
        sessions: SessionDraws | None = None,
        *,
        level: Tensor,
        latents: Tensor,
    ) -> None:
        super().__init__(new_rows, draw, prior, tau, turns, generator, sessions)
        self.cutpoints, self.level, self.latents = draw.parameters[CUTPOINTS], level, latents
        self.effects = _by_row(new_rows, new_rows.ratings.values) - self.targets
        self.targets = latents - self.effects
        self.residuals = self.errors(self.base)

    def solve_block(self, statistics: RowStatistics) -> SolvedRows:
        """The rows, their τ and the latents drawn in turn; the mean is given the τ and the latents before them."""
        rows, view = statistics.rows, self.view
        entries = view.pattern.entries_of(rows)
        pattern, partners = view.pattern.row_block(rows.start, rows.stop), self.partners[:, self.new_rows.columns]
        fixed = self.targets[entries] - self.residuals[entries]
        weights = torch.ones_like(fixed) if view.weights is None else view.weights[entries]
        for _ in range(TURNS):
            residuals, tau = self.targets[entries] - fixed, self.tau[rows].clone()
            statistics = statistics._replace(
                rhs=spmm(pattern, weights * residuals, partners),
                squares=spmm(pattern, weights * residuals.square(), torch.ones_like(partners[:, :1])),
            )
            mean, factor = statistics.minimum(tau, self.ridge(rows, tau), self.prior_mean)
            normal = standard_normal(mean.shape, mean, self.generator)
            sample = mean + torch.linalg.solve_triangular(factor.mT, normal[..., None], upper=True)[..., 0]
            if self.turns > 1:
                rate = PRECISION_SCALE_SHAPE + 0.5 * statistics.errors(sample).double()
                shape = PRECISION_SCALE_SHAPE + 0.5 * statistics.counts.double()
                self.tau[rows] = (standard_gamma(shape, self.generator) / rate).to(mean.dtype)
            v = weights * self.tau[rows, 0].index_select(0, pattern.row)
            self._draw_latents(entries, fixed + sddmm(pattern, sample, partners), v)
        self.residuals[entries] = self.targets[entries] - fixed
        return SolvedRows(mean, sample, torch.zeros_like(mean), tau, self.partners)

    def _draw_latents(self, entries: slice, products: Tensor, v: Tensor) -> None:
        """Draw the latents of some entries, given products and session biases of new users, and precisions."""
        eta = products + self.effects[entries]
        self.latents[entries] = truncated_normals(eta, v, self.level[entries], self.cutpoints, self.generator)
        self.targets[entries] = self.latents[entries] - self.effects[entries]
