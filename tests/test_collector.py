"""The tap files each step's gradient, and notices every wrapper that gradients cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_gippo import GIPPO, GradientChannelError, make_vec_env
from sb3_gippo.on_policy.actor import gaussian
from tests.reference import linear_quadratic
from tests.test_action_gradients import rollout


def vec(wrap: Callable[[gym.Env], gym.Env] = lambda env: env, n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: wrap(linear_quadratic(**kwargs)) for _ in range(n_envs)])


class Terminals(gym.Wrapper):
    """Keeps the observation each episode ended with."""

    def __init__(self, env: gym.Env, found: list[np.ndarray]):
        super().__init__(env)
        self.found = found

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            self.found.append(observation)
        return observation, reward, terminated, truncated, info


def test_the_window_holds_next_observations_and_where_values_and_episodes_go_on() -> None:
    found: list[np.ndarray] = []
    model, record = rollout(vec(lambda env: Terminals(env, found), 3, max_episode_steps=5, limit=2.5), 12)
    buffer, dones, truncated = model.rollout_buffer, np.array(record.dones), np.array(record.truncated)
    assert (dones & truncated).any() and (dones & ~truncated).any()
    np.testing.assert_array_equal(buffer.bootstrap, ~dones | truncated)
    np.testing.assert_array_equal(buffer.continues[:-1], ~dones[:-1])
    assert not buffer.continues[-1].any()
    goes_on = buffer.continues[:-1]
    np.testing.assert_array_equal(buffer.next_observations[:-1][goes_on], buffer.observations[1:][goes_on])
    np.testing.assert_allclose(buffer.next_observations[dones], found)
    assert (buffer.next_observations[:-1][dones[:-1]] != buffer.observations[1:][dones[:-1]]).all()
    assert len(buffer.step_gradients) == 12


def test_the_noise_is_what_the_policy_drew() -> None:
    model, _ = rollout(vec(), 6)
    buffer = model.rollout_buffer
    mean, std = (x.detach().numpy() for x in gaussian(model.policy, buffer.to_torch(buffer.observations.reshape(12, 3))))
    drawn = mean.reshape(buffer.actions.shape) + std.reshape(buffer.actions.shape) * buffer.noise
    np.testing.assert_allclose(drawn, buffer.actions, rtol=1e-6, atol=1e-6)
    assert 0.3 < buffer.noise.std() < 2.0


@pytest.mark.parametrize("wrap", [VecMonitor, VecCheckNan, lambda env: VecCheckNan(VecMonitor(env))])
def test_wrappers_that_change_nothing_change_no_gradient(wrap: Callable[[VecEnv], VecEnv]) -> None:
    plain, _ = rollout(vec(), 6)
    wrapped, _ = rollout(wrap(vec()), 6)
    np.testing.assert_array_equal(wrapped.rollout_buffer.action_gradients, plain.rollout_buffer.action_gradients)


class Shaped(gym.Wrapper):
    """The same problem, its observations and actions as columns."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (3, 1), np.float64)
        self.action_space = spaces.Box(-2.0, 2.0, (2, 1), np.float64)

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return observation[:, None], info

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action[:, 0])
        return observation[:, None], *rest


def test_observations_and_actions_of_any_shape_are_flattened() -> None:
    plain, _ = rollout(vec(), 6)
    shaped, _ = rollout(vec(Shaped), 6)
    assert shaped.rollout_buffer.observations.shape == (6, 2, 3, 1)
    np.testing.assert_allclose(shaped.rollout_buffer.action_gradients, plain.rollout_buffer.action_gradients, rtol=1e-9)


def learn(env: VecEnv, **kwargs: Any) -> GIPPO:
    return GIPPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu", **kwargs).learn(16)


def rescaled(env: gym.Env) -> gym.Env:
    return gym.wrappers.RescaleAction(env, np.float64(-1.0), np.float64(1.0))


MISMATCHES: dict[str, tuple[Callable[[gym.Env], gym.Env], str]] = {
    "action rescaled": (rescaled, "another action"),
    "action halved": (lambda env: gym.wrappers.TransformAction(env, lambda a: a / 2, env.action_space), "another action"),
    "action repeated late": (lambda env: gym.wrappers.StickyAction(env, 0.9), "another action"),
    "observation shifted": (
        lambda env: gym.wrappers.TransformObservation(env, lambda o: o + 0.01, env.observation_space),
        "another obs",
    ),
    "observation normalised": (gym.wrappers.NormalizeObservation, "another obs"),
    "reward scaled": (lambda env: gym.wrappers.TransformReward(env, lambda r: 1.01 * r), "another reward"),
    "reward normalised": (gym.wrappers.NormalizeReward, "another reward"),
}


@pytest.mark.parametrize("case", list(MISMATCHES))
@pytest.mark.parametrize("normalize", [False, True])
def test_a_wrapper_that_changes_something_is_noticed_with_its_remedy(case: str, normalize: bool) -> None:
    wrap, message = MISMATCHES[case]
    env: VecEnv = vec(wrap)
    with pytest.raises(GradientChannelError, match=rf"^The gradient of environment \d was taken at {message} \(") as caught:
        learn(VecNormalize(env) if normalize else env)
    text = str(caught.value)
    remedy = "squash_actions=True" if "action" in message else "VecNormalize"
    assert "\n" not in text and text.endswith(".") and "A wrapper that changes it in between" in text and remedy in text


def test_only_the_environment_that_differs_is_named() -> None:
    fns = [linear_quadratic, lambda: gym.wrappers.TransformReward(linear_quadratic(), lambda r: r + 1)]
    with pytest.raises(GradientChannelError, match=r"^The gradient of environment 1 was taken at another reward"):
        learn(DummyVecEnv(fns))


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize])
def test_stacked_frames_are_refused_in_one_sentence(wrap: Callable[[VecEnv], VecEnv]) -> None:
    batched = make_vec_env("CartPoleSwingUp-v0", 2)
    for env in (wrap(VecFrameStack(vec(), 2)), wrap(VecFrameStack(batched, 2)), VecFrameStack(wrap(batched), 3)):
        with pytest.raises(GradientChannelError, match="VecFrameStack") as caught:
            learn(env)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


class Sometimes(gym.Wrapper):
    """Offers its gradient in some steps only."""

    def __init__(self, env: gym.Env, steps: set[int]):
        super().__init__(env)
        self.steps, self.count = steps, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.count not in self.steps:
            info.pop("grad", None)
        self.count += 1
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("steps", [{0, 1, 2}, {3, 4, 5, 6, 7}])
@pytest.mark.filterwarnings("ignore:GIPPO trains without gradients:UserWarning")
def test_gradients_in_some_steps_only_are_refused(steps: set[int]) -> None:
    with pytest.raises(
        GradientChannelError, match=r"every environment must offer the gradient channel in every step, or none"
    ):
        learn(vec(lambda env: Sometimes(env, steps)))


def test_gradients_of_some_environments_only_are_refused() -> None:
    fns = [linear_quadratic, lambda: Sometimes(linear_quadratic(), set())]
    with pytest.raises(GradientChannelError, match=r'^Environment 1 returned no info\["grad"\]'):
        learn(DummyVecEnv(fns))
