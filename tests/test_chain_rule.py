"""What stands between policy and environment: followed by the gradients, checked by differences, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from gippo_envs.core import BatchedEnv, SingleEnv
from sb3_gippo import GIPPO, GradientChannelError, TorchVecEnv
from sb3_gippo.rollout.chain_rule import action_derivative
from tests.reference import LinearQuadratic, difference_gradients
from tests.test_action_gradients import assert_close, rollout

Wrapper = Callable[[gym.Env], gym.Env]
LOUD = {"log_std_init": 0.5}
"""noise that leaves the action bounds now and then"""


@dataclass
class Lopsided(LinearQuadratic):
    """Other bounds above than below, and for each action; r stays the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.action_space = spaces.Box(np.array([-0.5, -1.0]), np.array([2.0, 0.25]), dtype=np.float64)


def dense(core: type[LinearQuadratic] = Lopsided, wrapper: Wrapper = lambda env: env, n_envs: int = 3) -> VecEnv:
    return DummyVecEnv([lambda: wrapper(gym.wrappers.TimeLimit(SingleEnv(core, limit=3.0), 6)) for _ in range(n_envs)])


def graph(n_envs: int = 3) -> VecEnv:
    return TorchVecEnv(BatchedEnv(Lopsided, n_envs, max_episode_steps=6, limit=3.0))


def out_of_range(model: GIPPO) -> np.ndarray:
    space = model.action_space
    assert isinstance(space, spaces.Box)
    actions = model.rollout_buffer.actions
    return (actions < space.low) | (actions > space.high)


@pytest.mark.parametrize("make", [dense, graph])
def test_clip_with_lopsided_bounds(make: Callable[[], VecEnv]) -> None:
    model, record = rollout(make(), 10, policy_kwargs=LOUD)
    clipped = out_of_range(model)
    assert 0.2 < clipped.mean() < 0.8
    assert (model.rollout_buffer.action_gradients[clipped] == 0).all()
    assert_close(model, difference_gradients(model, Lopsided(), record))


@pytest.mark.parametrize("make", [dense, graph])
def test_squash_with_lopsided_bounds(make: Callable[[], VecEnv]) -> None:
    model, record = rollout(make(), 10, policy_kwargs={**LOUD, "squash_actions": True})
    assert (model.rollout_buffer.action_gradients[out_of_range(model)] != 0).all()
    assert_close(model, difference_gradients(model, Lopsided(), record))


@pytest.mark.parametrize("clip", [10.0, 0.6])
@pytest.mark.parametrize("norm_obs, norm_reward", [(True, False), (False, True), (True, True)])
def test_vecnormalize_with_moving_statistics(norm_obs: bool, norm_reward: bool, clip: float) -> None:
    env = VecNormalize(dense(), norm_obs=norm_obs, norm_reward=norm_reward, clip_obs=clip, clip_reward=clip)
    model, record = rollout(env, 10)
    statistics = [np.concatenate([np.ravel(part) for part in entry]) for entry in record.statistics]
    assert (statistics[0] != statistics[-1]).any()
    if clip < 1 and norm_obs:
        assert (np.abs(model.rollout_buffer.observations) == np.float32(clip)).any()
    # VecNormalize rounds observations and rewards to float32
    assert_close(model, difference_gradients(model, Lopsided(), record), 1e-5)


def test_vecnormalize_that_has_stopped_learning() -> None:
    env = VecNormalize(dense())
    rollout(env, 10)
    env.training = False
    model, record = rollout(env, 10)
    assert_close(model, difference_gradients(model, Lopsided(), record), 1e-5)


@pytest.mark.parametrize(
    "stack",
    [
        lambda: VecMonitor(dense()),
        lambda: VecMonitor(graph()),
        lambda: VecNormalize(VecMonitor(graph())),
        lambda: VecMonitor(VecNormalize(dense(wrapper=Monitor))),
        lambda: dense(wrapper=lambda env: Monitor(gym.wrappers.RecordEpisodeStatistics(env))),
        lambda: dense(wrapper=gym.wrappers.FlattenObservation),
    ],
)
@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_monitors_and_time_limits_are_transparent(stack: Callable[[], VecEnv]) -> None:
    model, record = rollout(stack(), 8)
    assert np.any(record.truncated)
    assert_close(model, difference_gradients(model, Lopsided(), record), 1e-5)


class SkipFrames(gym.Wrapper):
    """Two steps for one, their rewards added up."""

    def step(self, action: Any) -> Any:
        first = self.env.step(action)
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, first[1] + reward, terminated, truncated, info


class Delay(gym.ActionWrapper):
    """Sends the action before the last."""

    last: Any = None

    def action(self, action: Any) -> Any:
        sent, self.last = (action if self.last is None else self.last), action
        return sent


REFUSED: dict[str, tuple[Wrapper, str, str]] = {
    "RescaleAction": (lambda env: gym.wrappers.RescaleAction(env, np.float64(-1), np.float64(1)), "action", "squash_actions"),
    "TransformAction": (lambda env: gym.wrappers.TransformAction(env, lambda a: 0.9 * a, None), "action", "squash_actions"),
    "delay": (Delay, "action", "squash_actions"),
    "TransformReward": (lambda env: gym.wrappers.TransformReward(env, lambda r: 0.1 * r), "reward", "VecNormalize"),
    "ClipReward": (lambda env: gym.wrappers.ClipReward(env, -0.1, 0.1), "reward", "VecNormalize"),
    "NormalizeReward": (gym.wrappers.NormalizeReward, "reward", "VecNormalize"),
    "skipped frames": (SkipFrames, "reward", "VecNormalize"),
    "TransformObservation": (
        lambda env: gym.wrappers.TransformObservation(env, lambda o: 2 * o, None),
        "obs",
        "VecNormalize",
    ),
    "NormalizeObservation": (gym.wrappers.NormalizeObservation, "obs", "VecNormalize"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_wrappers_that_change_numbers_are_refused_with_a_remedy(name: str) -> None:
    wrapper, what, remedy = REFUSED[name]
    with pytest.raises(GradientChannelError, match=f"taken at another {what} .* A wrapper .* cannot be followed: .*{remedy}"):
        rollout(dense(wrapper=wrapper), 10)


def test_a_tiny_reward_does_not_hide_its_wrapper() -> None:
    class Tiny(Lopsided):
        def step(self, state: Any, action: Any) -> Any:
            following, reward, terminated = super().step(state, action)
            return following, 1e-9 * reward, terminated

    with pytest.raises(GradientChannelError, match="another reward"):
        rollout(dense(Tiny, lambda env: gym.wrappers.TransformReward(env, lambda r: 0.5 * r)), 4)


def test_an_action_wrapper_is_refused_where_it_clips_and_transparent_where_not() -> None:
    def clip(env: gym.Env) -> gym.Env:
        wide = spaces.Box(-9.0, 9.0, (2,), np.float64)
        return gym.wrappers.TransformAction(env, lambda a: np.clip(a, -2, 2), wide)

    model, record = rollout(dense(LinearQuadratic, clip), 4, policy_kwargs={"log_std_init": -3.0})
    assert np.abs(model.rollout_buffer.actions).max() < 2
    assert_close(model, difference_gradients(model, LinearQuadratic(), record))
    with pytest.raises(GradientChannelError, match=r"another action .* ClipAction"):
        rollout(dense(LinearQuadratic, clip), 10, policy_kwargs={"log_std_init": 1.0})


def test_clipaction_is_refused_by_sb3_itself() -> None:
    """It makes the action space unbounded."""
    with pytest.raises(AssertionError, match="finite lower and upper bound"):
        rollout(dense(wrapper=gym.wrappers.ClipAction), 4)


@pytest.mark.parametrize(
    "stack",
    [
        lambda: VecFrameStack(dense(), 2),
        lambda: VecFrameStack(graph(), 2),
        lambda: VecFrameStack(VecNormalize(graph()), 2),
        lambda: VecNormalize(VecFrameStack(graph(), 2)),
        lambda: VecNormalize(VecFrameStack(dense(), 2)),
        lambda: dense(wrapper=lambda env: gym.wrappers.FlattenObservation(gym.wrappers.FrameStackObservation(env, 2))),
        lambda: dense(wrapper=gym.wrappers.TimeAwareObservation),
    ],
)
@pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")
def test_stacked_observations_are_refused(stack: Callable[[], VecEnv]) -> None:
    with pytest.raises(GradientChannelError, match=r"VecFrameStack|stacked frames"):
        rollout(stack(), 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_squashs_derivative_keeps_its_digits_far_out(dtype: Any) -> None:
    """1 - tanh² is 96 % wrong at 9 in float32, and 0 a little further."""
    policy: Any = SimpleNamespace(action_space=spaces.Box(-2.0, 2.0, (1,), dtype), squash_output=True)
    actions = np.array([[0.0], [3.0], [9.0], [-20.0], [40.0]], dtype=dtype)
    found = action_derivative(policy, actions)
    # 1 - tanh² = 4 exp(-2|x|) / (1 + exp(-2|x|))², which loses nothing
    small = np.exp(-2 * np.abs(actions.astype(np.float64)))
    expected = 2.0 * 4 * small / (1 + small) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isfinite(action_derivative(policy, np.array([[1e30], [-np.float64(3e38)]], dtype=dtype))).all()
