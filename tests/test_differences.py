"""FiniteDifferenceGradient: dÂ/da of any environment that can be put into a state, and what it refuses."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_gippo import FiniteDifferenceGradient, GradientChannelError, check_differentiable_env
from tests.reference import LinearQuadratic, difference_gradients
from tests.test_action_gradients import assert_close, rollout


class Plain(gym.Env[np.ndarray, np.ndarray]):
    """LinearQuadratic without derivatives, in numpy, with noise and with a step count that ends it."""

    def __init__(self, noise: float = 0.0, dtype: Any = np.float64, ends: int = 10**6, forgets: bool = False):
        self.core = LinearQuadratic()
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype)
        self.action_space = spaces.Box(-2.0, 2.0, (2,), dtype)
        self.noise, self.dtype, self.ends, self.forgets = noise, dtype, ends, forgets
        self.steps, self.calls = 0, 0
        self.x = np.zeros(3)

    def get_state(self) -> np.ndarray:
        return self.x.astype(self.dtype)

    def set_state(self, x: np.ndarray) -> None:
        self.x = np.asarray(x, dtype=self.dtype).astype(np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=3).astype(self.dtype).astype(np.float64)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.calls += 1
        self.steps += 1
        a, b = self.core.a.numpy(), self.core.b.numpy()
        before, action = self.x, np.asarray(action, dtype=self.dtype).astype(np.float64)
        x = a @ before + b @ action + self.noise * self.np_random.normal(size=3)
        if self.forgets:
            x = x + 1e-2 * self.calls
        reward = -np.square(x).sum() - 0.1 * np.square(action).sum() + 0.3 * before[0] * action[0]
        self.x = x.astype(self.dtype).astype(np.float64)
        return self._observe(), float(reward), False, False, {}

    def _observe(self) -> np.ndarray:
        return (self.x * np.array([1.0, 2.0, 0.5])).astype(self.dtype)


def wrapped(**kwargs: Any) -> gym.Env:
    return gym.wrappers.TimeLimit(FiniteDifferenceGradient(Plain(**kwargs)), 5)


@pytest.mark.parametrize("normalized", [False, True])
def test_action_gradients_are_those_of_the_simulation(normalized: bool) -> None:
    env: Any = DummyVecEnv([wrapped for _ in range(3)])
    env = VecNormalize(env) if normalized else env
    model, record = rollout(env, 8, policy_kwargs={"squash_actions": normalized})
    # VecNormalize rounds observations and rewards to float32.
    assert_close(model, difference_gradients(model, LinearQuadratic(), record), 1e-5 if normalized else 1e-6)


def test_it_passes_the_checker_and_leaves_no_trace() -> None:
    report = check_differentiable_env(FiniteDifferenceGradient(Plain()), n_episodes=1, max_steps=4)
    assert report.unjudged == 0 and report.entries == 3 * 7 * 5
    outcomes = []
    for on in (True, False):
        env = FiniteDifferenceGradient(Plain(noise=0.3), differentiable=on)
        env.reset(seed=1)
        steps = [env.step(np.full(2, 0.3)) for _ in range(4)]
        outcomes.append([np.append(step[0], step[1]) for step in steps])
        assert ("grad" in steps[-1][-1]) is on
    np.testing.assert_array_equal(*outcomes)


@pytest.mark.parametrize("central, steps", [(True, 2 * (3 + 2) + 1), (False, 3 + 2 + 1)])
def test_a_gradient_costs_what_is_said(central: bool, steps: int) -> None:
    env = FiniteDifferenceGradient(Plain(), differentiable=True, central=central)
    env.reset(seed=0)
    env.step(np.ones(2))  # the first looks at the environment's types as well
    env.unwrapped.calls = 0  # type: ignore[attr-defined]
    env.step(np.ones(2))
    assert env.unwrapped.calls == steps + 1  # type: ignore[attr-defined]


def test_what_it_cannot_follow_ends_in_a_sentence() -> None:
    with pytest.raises(
        TypeError, match=r"needs `get_state\(\) -> \(n,\)` and `set_state\(x\)` of PendulumEnv, which has no get_"
    ):
        FiniteDifferenceGradient(gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="epsilon must be positive, not 0"):
        FiniteDifferenceGradient(Plain(), epsilon=0)
    env = FiniteDifferenceGradient(Plain(forgets=True), differentiable=True)
    env.reset(seed=0)
    with pytest.raises(
        GradientChannelError, match=r"made twice .* another observation: set_state\(x\) must restore everything"
    ):
        env.step(np.ones(2))
    env = FiniteDifferenceGradient(Plain(dtype=np.float32), differentiable=True)
    env.reset(seed=0)
    with pytest.raises(GradientChannelError, match=r"does not get_state\(\) what was given .* let it compute in float64, or"):
        env.step(np.ones(2, dtype=np.float32))
    coarse = FiniteDifferenceGradient(Plain(dtype=np.float32), differentiable=True, epsilon=1e-3)
    coarse.reset(seed=0)
    grad = coarse.step(np.ones(2, dtype=np.float32))[-1]["grad"]
    np.testing.assert_allclose(grad["state_action"], LinearQuadratic().b.numpy(), atol=1e-3)
