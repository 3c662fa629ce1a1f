"""The functions have their published values, minima and gradients, in any dimension."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from gippo_envs.functions import Ackley, AckleyContext, DeJong, DeJongContext, Function, Rastrigin, Rosenbrock
from gippo_envs.landscape import CURVE, GUESS, MINIMUM

CLASSES: list[type[Function]] = [DeJong, Ackley, Rosenbrock, Rastrigin]
IDS = ["DeJong-v0", "Ackley-v0", "Rosenbrock-v0", "Rastrigin-v0"]
BOUNDS = {DeJong: 5.12, Ackley: 32.768, Rosenbrock: 2.048, Rastrigin: 5.12}
MINIMA = {DeJong: 0.0, Ackley: 0.0, Rosenbrock: 1.0, Rastrigin: 0.0}


def value(core: Function, *point: float) -> float:
    return core.value(th.tensor([point], dtype=core.torch_dtype)).item()


@pytest.mark.parametrize(
    "function, point, expected",
    [
        (DeJong, (1.0, -2.0, 3.0), 14.0),
        # f(1, ..., 1) = 20 - 20 exp(-0.2): the waves are at their crests in every integer point
        (Ackley, (1.0, 1.0), 20 - 20 * math.exp(-0.2)),
        (Ackley, (0.5,), 20 + math.e - 20 * math.exp(-0.1) - math.exp(-1)),
        (Rosenbrock, (0.0, 0.0), 1.0),
        (Rosenbrock, (-1.0, 1.0), 4.0),
        (Rosenbrock, (1.0, 2.0, 3.0), 100 * 1 + 0 + 100 * 1 + 1),
        (Rosenbrock, (3.0,), 4.0),
        (Rastrigin, (0.5,), 20.25),
        (Rastrigin, (1.0, 2.0, -3.0), 14.0),
    ],
)
def test_known_values(function: type[Function], point: tuple[float, ...], expected: float) -> None:
    assert value(function(len(point), dtype="float64"), *point) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("function", CLASSES)
@pytest.mark.parametrize("dim", [1, 2, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_minimum_is_zero_and_nowhere_less(function: type[Function], dim: int, dtype: str) -> None:
    core = function(dim, dtype=dtype)
    assert value(core, *[MINIMA[function]] * dim) == pytest.approx(0.0, abs=1e-12)
    points = th.empty(1000, dim, dtype=core.torch_dtype).uniform_(
        -core.bound, core.bound, generator=th.Generator().manual_seed(0)
    )
    assert (core.value(points) > 0).all()


@pytest.mark.parametrize("function", [DeJong, Ackley, Rastrigin])
@pytest.mark.parametrize("dim", [1, 64])
@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_float32_keeps_its_digits_near_the_minimum(function: type[Function], dim: int, distance: float) -> None:
    points = distance * th.randn(1000, dim, generator=th.Generator().manual_seed(0))
    exact = function(dim, dtype="float64").value(points.double())
    np.testing.assert_allclose(function(dim).value(points).numpy(), exact.numpy(), rtol=2e-6)


@pytest.mark.parametrize("function, env_id", list(zip(CLASSES, IDS)))
def test_the_environment_is_one_guess_within_the_bound(function: type[Function], env_id: str) -> None:
    env = gym.make(env_id, dim=3, dtype="float64")
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0.0] and env.action_space.shape == (3,)
    action = np.array([0.3, -1.0, 0.7])
    observation, reward, terminated, truncated, _ = env.step(action)
    assert function.bound == BOUNDS[function]
    assert reward == -value(function(3, dtype="float64"), *(function.bound * action))
    assert observation.tolist() == [0.0] and terminated and not truncated


@pytest.mark.parametrize(
    "env_id, dim", [("DeJong-v0", 1), ("DeJong64-v0", 64), ("Ackley-v0", 1), ("Ackley64-v0", 64), ("Rosenbrock-v0", 2)]
)
def test_dimension_of_the_id_and_by_keyword(env_id: str, dim: int) -> None:
    assert gym.make(env_id).action_space.shape == (dim,)
    assert gym.make(env_id, dim=5).action_space.shape == (5,)
    assert gym.make_vec(env_id, num_envs=2, dim=5).action_space.shape == (2, 5)
    with pytest.raises(ValueError, match=r"^dim must be at least 1, not 0\.$"):
        gym.make(env_id, dim=0)


@pytest.mark.parametrize("dim", [1, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ackleys_gradient_at_its_cusp_is_zero_and_beside_it_points_away(dim: int, dtype: str) -> None:
    env = gym.make("Ackley-v0", dim=dim, dtype=dtype, differentiable=True)
    env.reset(seed=0)
    at_cusp = env.step(np.zeros(dim, dtype=dtype))[4]["grad"]["reward_action"]
    np.testing.assert_array_equal(at_cusp, np.zeros(dim))
    env.reset()
    offset = np.full(dim, 1e-6, dtype=dtype)
    beside = env.step(offset)[4]["grad"]["reward_action"]
    # f ~ 4 |x| / sqrt(dim) there: the slope per action is -4 bound / dim.
    np.testing.assert_allclose(beside, -4 * Ackley.bound / dim, rtol=1e-3)


@pytest.mark.parametrize(
    "function, gradient",
    [
        (DeJong, lambda x: 2 * x),
        (Rastrigin, lambda x: 2 * x + 20 * math.pi * np.sin(2 * math.pi * x)),
        (
            Rosenbrock,
            lambda x: np.array(
                [
                    -400 * x[0] * (x[1] - x[0] ** 2) - 2 * (1 - x[0]),
                    200 * (x[1] - x[0] ** 2) - 400 * x[1] * (x[2] - x[1] ** 2) - 2 * (1 - x[1]),
                    200 * (x[2] - x[1] ** 2),
                ]
            ),
        ),
    ],
)
def test_gradients_are_the_textbooks(function: type[Function], gradient: object) -> None:
    action = np.array([0.2, -0.5, 0.9])
    env = gym.make(IDS[CLASSES.index(function)], dim=3, dtype="float64", differentiable=True)
    env.reset(seed=0)
    found = env.step(action)[4]["grad"]["reward_action"]
    expected = -function.bound * gradient(function.bound * action)  # type: ignore[operator]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("function", [*CLASSES, DeJongContext, AckleyContext])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_optimum_is_where_the_cost_is_zero(function: type[Function], dim: int) -> None:
    core = function(dim, dtype="float64")
    states = core.initial_state(7, th.Generator().manual_seed(0))
    best = core.optimum(states)
    assert best.shape == (7, dim) and (best.abs() < 1).all()
    np.testing.assert_allclose(core.cost(states, best), 0.0, atol=1e-12)
    _, rewards, _ = core.step(states, best + 0.1)
    assert (rewards < 0).all()


def pixel(x: float, y: float) -> tuple[int, int]:
    """:return: row and column of a place in [-1, 1]² in a picture of 400 by 400 with a tenth around"""
    return round(200 - 200 / 1.1 * y), round(200 + 200 / 1.1 * x)


def shown(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """:return: the middle of what has this colour: row, column"""
    return np.argwhere((picture == color).all(2)).mean(0)


@pytest.mark.parametrize("function", CLASSES)
def test_the_picture_of_one_variable_is_the_curve(function: type[Function]) -> None:
    core = function(1, dtype="float64")
    state = core.initial_state(1, th.Generator())[0]
    highest = core.cost(state[None], th.linspace(-1, 1, 800, dtype=th.float64)[:, None]).max().item()
    before, after = core.render(state), core.render(state, th.tensor([-0.7], dtype=th.float64))
    assert before.shape == after.shape == (400, 400, 3) and before.dtype == np.uint8
    assert not (before == GUESS).all(2).any() and (before == CURVE).all(2).any()
    np.testing.assert_allclose(shown(before, MINIMUM), pixel(MINIMA[function] / core.bound, -1.0), atol=1.0)
    height = 2 * value(core, -0.7 * core.bound) / highest - 1
    rows, columns = np.nonzero((after == GUESS).all(2))
    row, column = pixel(-0.7, height)
    assert columns.mean() == pytest.approx(column, abs=1.5) and row - 9 <= rows.min() <= row


@pytest.mark.parametrize("function", [*CLASSES, DeJongContext, AckleyContext])
@pytest.mark.parametrize("dim", [2, 5])
def test_the_picture_of_more_variables_is_the_landscape_over_two(function: type[Function], dim: int) -> None:
    core = function(dim, dtype="float64")
    state = core.initial_state(1, th.Generator().manual_seed(1))[0]
    best = core.optimum(state[None])[0]
    before = core.render(state)
    np.testing.assert_allclose(shown(before, MINIMUM), pixel(*best[:2].tolist()), atol=1.0)
    # The first variable to the right, the second one up; bright is high.
    places = (np.mgrid[:9, :9].reshape(2, -1).T - 4) / 4.5
    brightness, costs = [], []
    for x, y in places:
        if math.dist((x, y), best[:2].tolist()) > 0.1:
            brightness.append(int(before[pixel(x, y)][1]))
            costs.append(core.cost(state[None], th.cat([th.tensor([[x, y]]), best[None, 2:]], dim=1)).item())
    ranks: Any = [np.argsort(np.argsort(values)) for values in (costs, brightness)]
    assert np.corrcoef(*ranks)[0, 1] > (0.6 if issubclass(function, Ackley) else 0.95), "Ackley's waves are finer than pixels"
    action = best.clone()
    action[:2] = th.tensor([0.5, -0.6])
    after = core.render(state, action)
    np.testing.assert_allclose(shown(after, GUESS), pixel(0.5, -0.6), atol=1.0)
    near = before[pixel(0.5, -0.6)].astype(int)
    assert np.abs(after[pixel(0.5, -0.6)].astype(int) - near).max() < 15, "filled with the colour of its value"
    beyond = core.render(state, th.full((dim,), 3.0, dtype=th.float64))
    np.testing.assert_allclose(shown(beyond, GUESS), pixel(1.0, 1.0), atol=1.0)
