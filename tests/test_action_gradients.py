"""action_gradients are dÂ/da: checked against central differences of the advantage's definition, through the real rollout."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from gippo_envs.core import SingleEnv
from gippo_envs.physics.cartpole import CartPoleSwingUp
from sb3_gippo import GIPPO, TorchVecEnv
from tests.reference import Float64Policy, LinearQuadratic, Recorder, difference_gradients, linear_quadratic


def rollout(env: VecEnv, n_steps: int, **kwargs: Any) -> tuple[GIPPO, Recorder]:
    """A model whose buffer holds one real window."""
    kwargs = {"gamma": 0.97, "gae_lambda": 0.9, "alpha": 0.1, "seed": 3, **kwargs}
    model = GIPPO(Float64Policy, env, n_steps=n_steps, batch_size=n_steps * env.num_envs, device="cpu", **kwargs)
    with th.no_grad():  # SB3's tiny initial output layer would hide the policy's reaction
        model.policy.action_net.weight.mul_(30)
    record = Recorder()
    _, callback = model._setup_learn(n_steps * env.num_envs, record)
    callback.on_training_start({}, {})
    assert model.collect_rollouts(env, callback, model.rollout_buffer, n_steps)
    return model, record


def assert_close(model: GIPPO, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    found = model.rollout_buffer.action_gradients
    assert np.abs(expected).max() > 1e-3, "a check of zeros shows nothing"
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("gamma, gae_lambda", [(0.97, 0.9), (0.9, 1.0), (0.9, 0.0), (0.0, 0.9)])
def test_linear_quadratic_with_terminations_and_truncations(gamma: float, gae_lambda: float) -> None:
    env = DummyVecEnv([lambda: Monitor(linear_quadratic(5, limit=2.5)) for _ in range(4)])
    model, record = rollout(env, 12, gamma=gamma, gae_lambda=gae_lambda)
    dones, truncated = np.array(record.dones), np.array(record.truncated)
    assert (dones[:-1] & truncated[:-1]).any() and (dones[:-1] & ~truncated[:-1]).any()
    assert_close(model, difference_gradients(model, LinearQuadratic(), record))


def test_cartpole_swingup_dense() -> None:
    make = lambda: gym.wrappers.TimeLimit(SingleEnv(CartPoleSwingUp, dtype="float64"), 6)  # noqa: E731
    model, record = rollout(DummyVecEnv([make for _ in range(3)]), 10)
    assert_close(model, difference_gradients(model, CartPoleSwingUp(dtype="float64"), record))


@pytest.mark.parametrize("normalize", [{}, {"clip_obs": 0.7, "clip_reward": 0.5}])
@pytest.mark.parametrize("squash", [True, False])
def test_cartpole_swingup_graph_through_vecnormalize(normalize: dict, squash: bool) -> None:
    batched = gym.make_vec("CartPoleSwingUp-v0", num_envs=3, dtype="float64", max_episode_steps=6)
    env = VecNormalize(TorchVecEnv(batched), **normalize)
    model, record = rollout(env, 10, policy_kwargs={"squash_actions": squash})
    # VecNormalize rounds observations and rewards to float32
    assert_close(model, difference_gradients(model, CartPoleSwingUp(dtype="float64"), record), 1e-5)


def test_dense_is_graph() -> None:
    def start(env: VecEnv) -> np.ndarray:
        model, _ = rollout(env, 8)
        return model.rollout_buffer.action_gradients

    states = np.random.default_rng(0).normal(size=(3, 4))

    class Fixed(CartPoleSwingUp):
        def initial_state(self, n: int, generator: th.Generator, options: dict | None = None) -> th.Tensor:
            return th.tensor(states if n == 3 else states[:n])

    class FixedSingle(SingleEnv):
        def __init__(self, index: int):
            super().__init__(Fixed, dtype="float64")
            self.index = index

        def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
            super().reset(**kwargs)
            self.set_state(states[self.index])
            with th.no_grad():
                return self.core.observe(self._state)[0].numpy().copy(), {}

    dense = start(DummyVecEnv([lambda i=i: FixedSingle(i) for i in range(3)]))  # type: ignore[misc]
    from gippo_envs.core import BatchedEnv

    graph = start(TorchVecEnv(BatchedEnv(Fixed, 3, dtype="float64")))
    np.testing.assert_allclose(dense, graph, rtol=1e-8)


def test_subprocesses_carry_the_gradient() -> None:
    fns = [linear_quadratic for _ in range(2)]
    dummy, _ = rollout(DummyVecEnv(fns), 6)  # type: ignore[arg-type]
    env = SubprocVecEnv(fns)  # type: ignore[arg-type]
    try:
        subproc, _ = rollout(env, 6)
    finally:
        env.close()
    np.testing.assert_array_equal(dummy.rollout_buffer.action_gradients, subproc.rollout_buffer.action_gradients)
