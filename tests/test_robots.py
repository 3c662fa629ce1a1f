"""The robots as environments: their gradients, their batched form, and that nothing breaks them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

pytest.importorskip("mujoco", reason="robots are read by MuJoCo")
pytest.importorskip("warp", reason="robots are simulated by Warp")

import sb3_gippo
from gippo_envs.physics.ant import Ant
from gippo_envs.physics.hopper import Hopper
from gippo_envs.physics.robot import Robot

ROBOTS: list[type[Robot]] = [Hopper, Ant]


def landed(env: Robot, n: int) -> th.Tensor:
    """:return: states (n, k) after a fall, feet on the ground"""
    state = env.initial_state(n, th.Generator().manual_seed(0))
    generator = th.Generator().manual_seed(1)
    for _ in range(40):
        action = 2 * th.rand(n, env.action_dim, generator=generator, dtype=env.torch_dtype) - 1
        state = env.step(state, 0.3 * action)[0].detach()
    return state


def rewards(env: Robot, state: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """:return: the sum of rewards (n,) of steps with actions (steps, n, action_dim)"""
    total = th.zeros(len(state), dtype=state.dtype)
    for action in actions:
        state, reward, _ = env.step(state, action)
        total = total + reward
    return total


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("steps", [1, 8, 32])
def test_gradients_are_central_differences(robot: type[Robot], steps: int) -> None:
    env = robot(dtype="float64")
    start = landed(env, 4)
    generator = th.Generator().manual_seed(2)
    actions = 0.6 * th.rand(steps, 4, env.action_dim, generator=generator, dtype=th.float64) - 0.3
    direction = th.randn(actions.shape, generator=generator, dtype=th.float64)
    leaf = actions.clone().requires_grad_()
    found = (th.autograd.grad(rewards(env, start, leaf).sum(), leaf)[0] * direction).sum((0, 2))
    size = 1e-6
    after, before = (rewards(env, start, actions + sign * size * direction) for sign in (1, -1))
    assert found.abs().min() > 1e-3
    np.testing.assert_allclose(found, (after - before) / (2 * size), rtol=1e-5)


@pytest.mark.parametrize("robot", ROBOTS)
def test_robots_side_by_side_move_as_one_by_one(robot: type[Robot]) -> None:
    env = robot(dtype="float64")
    start = landed(env, 5)
    action = th.linspace(-1, 1, 5, dtype=th.float64)[:, None].expand(-1, env.action_dim)
    together = env.step(start, action)
    for k in range(5):
        alone = env.step(start[k : k + 1], action[k : k + 1])
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[k], b[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("robot", ROBOTS)
def test_random_actions_break_nothing(robot: type[Robot]) -> None:
    vec = sb3_gippo.make_vec_env(f"Diff{robot.__name__}-v0", 64, seed=0, env_kwargs={"dtype": "float64"})
    vec.reset()
    rng = np.random.default_rng(0)
    for _ in range(300):
        observations, reward, _, _ = vec.step(rng.uniform(-1, 1, (64, *vec.action_space.shape)))  # type: ignore[misc]
        assert np.isfinite(observations).all() and np.isfinite(reward).all()


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_checker_finds_nothing(robot: type[Robot]) -> None:
    env = gym.make(f"Diff{robot.__name__}-v0", dtype="float64")
    sb3_gippo.check_differentiable_env(env)


@pytest.mark.parametrize("robot", ["Hopper", "HalfCheetah", "Walker2d", "Ant", "Humanoid"])
def test_every_robot_is_read_and_starts(robot: str) -> None:
    env: Any = gym.make(f"Diff{robot}-v0").unwrapped
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_gippo_trains_on_a_robot() -> None:
    vec = sb3_gippo.make_vec_env("DiffHopper-v0", 4, seed=0, env_kwargs={"dtype": "float64"})
    model = sb3_gippo.GIPPO("MlpPolicy", vec, n_steps=8, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64)
    assert model.logger.name_to_value["train/nonfinite_grad_fraction"] == 0.0
    assert model.logger.name_to_value["train/action_grad_norm"] > 0.0
