"""Entities: users and items as modules of one class, whose features follow the module but are not part of its state."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import features_of
from torch import Tensor, nn
from torch.testing import assert_close

from mfrec.data.features import Features
from mfrec.data.ratings import HeldIndices
from mfrec.errors import InputError
from mfrec.model.entity import ENTITY_NAMES, ITEM, USER, Entity, FeatureBlock, initial_factors
from mfrec.model.factorization import MatrixFactorization


def ones(n: int) -> Tensor:
    """Initial factors of rank 3."""
    return torch.ones(n, 3)


def two_blocks(n_rows: int) -> dict[str, Features]:
    generator = torch.Generator().manual_seed(0)
    return {name: features_of(torch.randn(n_rows, k, generator=generator)) for name, k in (("age", 2), ("job", 4))}


@pytest.mark.parametrize("init", ["scaled-normal", "small-normal", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "rank"), [(5, 3), (16, 1), (47, 3), (48, 8), (95, 5)])
def test_held_rows_start_like_those_of_all_rows_which_are_drawn_block_by_block(n, rank, init, dtype, monkeypatch):
    monkeypatch.setattr("mfrec.model.entity.DRAWN_ROWS", 16)
    indices = (torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5).nonzero()[:, 0]

    def factors(n_held: int, held: HeldIndices | None) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        options = {"rank": rank, "nonnegative": False, "generator": generator, "dtype": dtype, "held": held}
        drawn = initial_factors(init, n_held, **options)
        # The numbers that follow are the same, too.
        return torch.cat([drawn.flatten(), torch.randn(20, generator=generator, dtype=dtype)])

    everything = factors(n, None)
    rows = everything[: n * rank].view(n, rank)[indices].flatten()
    assert torch.equal(factors(len(indices), HeldIndices(n, indices)), torch.cat([rows, everything[n * rank :]]))


@pytest.fixture
def model() -> MatrixFactorization:
    """5 users with two feature blocks, and 4 items that have only their features."""
    return MatrixFactorization(
        5, 4, 3, user_features=two_blocks(5), item_features=two_blocks(4), item_ids=False, offset=torch.tensor(3.0)
    )


@pytest.mark.parametrize("index", [USER, ITEM])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_users_and_items_have_the_same_parts_for_the_same_arguments(index, biases, ids):
    entity = Entity(index, 5, 3, ones, biases=biases, ids=ids, features=two_blocks(5))
    shapes = {name: tuple(parameter.shape) for name, parameter in entity.named_parameters()}
    expected = {"features.age.factors.weight": (2, 3), "features.job.factors.weight": (4, 3)}
    if ids:
        expected["factors.weight"] = (5, 3)
    if biases:
        expected |= {name.replace("factors", "bias"): (size[0], 1) for name, size in expected.items()}
    assert shapes == expected
    assert (entity.factors is not None) == ids
    assert (entity.bias is not None) == (ids and biases)
    assert list(entity.feature_blocks) == ["age", "job"]
    assert (entity.n_rows, entity.rank) == (5, 3)


def test_the_parameters_of_a_model_are_found_by_attribute(model):
    assert model.user_factors is model.users.factors
    assert model.user_bias is model.users.bias
    assert model.item_factors is model.item_bias is None
    assert model.entities == (model.users, model.items)
    names = set()
    for plural, entity in zip(("users", "items"), model.entities, strict=True):
        blocks = [(plural, entity), *((f"{plural}.features.{k}", b) for k, b in entity.feature_blocks.items())]
        for path, block in blocks:
            for part, embedding in (("factors", block.factors), ("bias", block.bias)):
                if embedding is not None:
                    names.add(f"{path}.{part}.weight")
                    assert model.get_parameter(f"{path}.{part}.weight") is embedding.weight
                    assert isinstance(embedding, nn.Embedding)
                    assert embedding.weight.requires_grad
    assert names == dict(model.named_parameters()).keys()


def test_each_term_names_the_parameters_and_the_columns_of_its_weights(model):
    terms = model.all_terms
    assert [term.entity for term in terms] == [USER, USER, USER, ITEM, ITEM]
    assert [term.factors.removesuffix(".factors.weight") for term in terms] == [
        "users", "users.features.age", "users.features.job", "items.features.age", "items.features.job"
    ]  # fmt: skip
    assert [term.features is None for term in terms] == [True, False, False, False, False]
    for term in terms:
        # Θ̃ = [θ, b, 1] and X̃ = [x, 1, b].
        assert term.columns == {term.factors: slice(0, 3), term.bias: slice(3 + term.entity, 4 + term.entity)}
        weights = torch.arange(15.0).reshape(3, 5)
        parts = term.split(weights)
        assert torch.equal(parts[term.factors], weights[:, :3])
        assert torch.equal(parts[term.bias], weights[:, 3 + term.entity, None])
        parts[term.factors].zero_()
        assert float(weights[:, :3].abs().max()) == 0  # views


def test_without_biases_a_term_has_factors_alone():
    (term,) = Entity(USER, 5, 3, ones, biases=False).terms
    assert term.bias is None
    assert term.columns == {"users.factors.weight": slice(0, 3)}


@pytest.mark.parametrize("ids", [False, True])
def test_feature_weights_start_at_zero_unless_they_are_all_there_is(ids):
    entity = Entity(ITEM, 5, 3, ones, ids=ids, features=two_blocks(5))
    for block in entity.feature_blocks.values():
        assert block.factors.weight.unique().tolist() == [0 if ids else 1]
        assert block.bias.weight.unique().tolist() == [0]


@pytest.mark.parametrize("index", [USER, ITEM])
def test_features_need_a_row_for_each_user_or_item(index):
    message = f"^job features must have a row for each of 6 {ENTITY_NAMES[index]}s \\(got 5\\)$"
    with pytest.raises(InputError, match=message):
        Entity(index, 6, 3, ones, features={"job": two_blocks(5)["job"]})


def feature_values(model: MatrixFactorization) -> list[Tensor]:
    return [block.features.matrix.values for entity in model.entities for block in entity.feature_blocks.values()]


def test_features_are_no_parameters_and_no_part_of_the_state(model):
    n_numbers = 5 * 4 + 2 * (2 + 4) * 4  # own rows of users, and the weights of two blocks each
    assert sum(parameter.numel() for parameter in model.parameters()) == n_numbers
    state = model.state_dict()
    assert state.keys() == dict(model.named_parameters()).keys() | {"offset", "rating_range"}
    again = MatrixFactorization(
        5, 4, 3, user_features=two_blocks(5), item_features=two_blocks(4), item_ids=False, offset=torch.tensor(0.0),
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    again.load_state_dict(state)
    users, items = torch.cartesian_prod(torch.arange(5), torch.arange(4)).T
    assert torch.equal(again.predict(users, items), model.predict(users, items))


@pytest.mark.parametrize(
    "move", [nn.Module.double, lambda model: model.to(torch.float64), lambda model: model.to("cpu", torch.float64)]
)
def test_features_follow_their_model_to_another_type(model, move):
    users, items = torch.cartesian_prod(torch.arange(5), torch.arange(4)).T
    before = model.predict(users, items)
    assert move(model) is model
    assert {values.dtype for values in feature_values(model)} == {torch.float64}
    assert {p.dtype for p in model.parameters()} == {model.dtype} == {torch.float64}
    assert_close(model.predict(users, items), before.double(), atol=1e-6, rtol=0)
    # The transpose, which was computed before the move, follows too.
    gradient = model.terms(ITEM)[0].rmatmul(torch.ones(4, 5, dtype=torch.float64))
    assert gradient.dtype == torch.float64
    pattern = model.items.feature_blocks["age"].features.matrix.pattern
    assert not pattern.col.is_floating_point()


def test_each_tensor_of_the_features_moves_with_the_parameters(model):
    moved = []
    matrices = [block.features.matrix for entity in model.entities for block in entity.feature_blocks.values()]
    model._apply(lambda tensor: moved.append(tensor) or tensor)
    pointers = {tensor.data_ptr() for tensor in moved}
    for matrix in matrices:
        assert {t.data_ptr() for t in (matrix.pattern.crow, matrix.pattern.col, matrix.values)} <= pointers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_features_follow_their_model_to_a_gpu_and_back(model):
    users, items = torch.cartesian_prod(torch.arange(5), torch.arange(4)).T
    before = model.predict(users, items)
    assert_close(model.cuda().predict(users, items).cpu(), before)
    assert {values.device.type for values in feature_values(model)} == {"cuda"}
    assert_close(model.cpu().predict(users, items), before)


def test_a_deep_copy_has_features_of_its_own(model):
    users, items = torch.cartesian_prod(torch.arange(5), torch.arange(4)).T
    before = model.predict(users, items)
    clone = copy.deepcopy(model).double()
    assert {values.dtype for values in feature_values(model)} == {torch.float32}
    assert torch.equal(model.predict(users, items), before)
    assert_close(clone.predict(users, items), before.double(), atol=1e-6, rtol=0)


def test_a_block_casts_features_to_the_type_of_its_weights_and_leaves_the_callers_alone():
    features = features_of(torch.eye(3))
    block = FeatureBlock(features, torch.zeros(3, 2, dtype=torch.float64), biases=False)
    assert block.features.matrix.values.dtype == torch.float64
    assert features.matrix.values.dtype == torch.float32
    assert block.bias is None


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_the_product_of_a_term_and_its_transpose_pass_gradcheck(density):
    generator = torch.Generator().manual_seed(0)
    F = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    F = F * (torch.rand(F.shape, generator=generator) < density)
    model = MatrixFactorization(7, 2, 3, user_features={"full": features_of(F)}, dtype=torch.float64)
    term = model.terms(USER)[1]
    W = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(term.product, (W,))
    assert_close(term.product(W), F @ W)
    G = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    assert_close(term.rmatmul(G), F.T @ G)
    identity = model.terms(USER)[0]
    assert identity.product(G) is identity.rmatmul(G) is G
