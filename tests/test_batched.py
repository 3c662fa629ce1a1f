"""DifferentiableVecEnv takes any batched environment with a step gradient, and says in a sentence what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecNormalize

from gippo_envs.core import BatchedEnv
from gippo_envs.episodes import Episodes, final_infos
from sb3_gippo import GIPPO, DifferentiableVecEnv, GradientChannelError, TorchVecEnv, check_differentiable_vec_env
from tests.reference import LinearQuadratic, difference_gradients
from tests.test_action_gradients import assert_close, rollout


class Pulled:
    """A step gradient written by hand in numpy."""

    state_size = 3

    def __init__(self, env: Numpy, before: np.ndarray, action: np.ndarray, after: np.ndarray, reward: np.ndarray):
        self.env, self.state, self.action, self.next_state, self.reward = env, before, action, after, reward
        self.observation = after * env.scale
        self.before, self.after, self.asked = before, after, 0

    def vjp(self, state_bar: Any, obs_bar: th.Tensor, reward_bar: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        a, b, fault = self.env.a, self.env.b, self.env.fault
        bar = obs_bar.detach().numpy() * self.env.scale + (0 if state_bar is None else state_bar.detach().numpy())
        if fault == "none is one" and state_bar is None:
            bar = bar + 1.0
        rbar = reward_bar.detach().numpy()[:, None]
        bar = bar - 2 * self.after * rbar
        x_bar, a_bar = bar @ a, bar @ b - 0.2 * self.action * rbar
        x_bar[:, 0] += 0.3 * self.action[:, 0] * rbar[:, 0]
        a_bar[:, 0] += 0.3 * self.before[:, 0] * rbar[:, 0]
        if fault == "wrong":
            a_bar[:, 1] *= 1.01
        if fault == "leaks":
            a_bar = a_bar + 0.01 * a_bar.mean(axis=0)
        if fault == "spent":
            self.asked += 1
            a_bar = a_bar / self.asked
        if fault == "not linear":
            a_bar = a_bar + 1e-3 * np.square(bar @ b)
        result = tuple(th.from_numpy(np.ascontiguousarray(each)).to(obs_bar) for each in (x_bar, a_bar))
        if fault == "float64":
            return result[0].double(), result[1].double()
        return result[0], result[1][:1] if fault == "one row" else result[1]


class Numpy(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """LinearQuadratic in numpy, with its derivative by hand: nothing of it is torch's or this package's."""

    def __init__(self, num_envs: int = 3, limit: float = 2.5, fault: str = ""):
        core = LinearQuadratic()
        self.a, self.b, self.scale = core.a.numpy(), core.b.numpy(), np.array([1.0, 2.0, 0.5])
        self.num_envs, self.limit, self.fault = num_envs, limit, fault
        self.single_observation_space, self.single_action_space = core.observation_space, core.action_space
        self.observation_space = batch_space(core.observation_space, num_envs)
        self.action_space = batch_space(core.action_space, num_envs)
        mode = AutoresetMode.NEXT_STEP if fault == "next step" else AutoresetMode.SAME_STEP
        self.metadata = {"autoreset_mode": mode}
        self.step_gradient: Any = None
        self.episodes = Episodes(num_envs, 5, False)
        self.on = False

    def set_differentiable(self, on: bool) -> None:
        self.on = on

    def get_state(self) -> np.ndarray:
        return self.x

    def set_state(self, x: np.ndarray) -> None:
        self.x = x.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=(self.num_envs, 3))
        self.episodes.begin()
        self.step_gradient = self.step_gradient if self.fault == "kept" else None
        observations = self.x * self.scale
        return observations if self.fault == "reset" else (observations[:, :2] if self.fault == "size" else observations, {})

    def step(self, actions: Any) -> Any:
        before, actions = self.x, np.asarray(actions, dtype=np.float64)
        mixed = before + 0.01 * before.mean(axis=0) if self.fault == "mixes" else before
        x = mixed @ self.a.T + actions @ self.b.T
        rewards = -np.square(x).sum(1) - 0.1 * np.square(actions).sum(1) + 0.3 * before[:, 0] * actions[:, 0]
        terminated = np.abs(x[:, 0]) > self.limit
        truncated, observations, infos = self.episodes.step(terminated), x * self.scale, {}
        gradient: Any = Pulled(self, before, actions, x, rewards)
        if self.fault == "no vjp":
            gradient = object()
        if self.fault == "untold":
            gradient.next_state, gradient.state = None, None
        if self.fault == "action (n, 1)":
            gradient.action = gradient.action[:, :1]
        self.step_gradient = gradient if self.on or self.fault == "always" else None
        done = terminated | truncated
        if done.any():
            infos = {} if self.fault == "no final_obs" else final_infos(observations, done)
            x, observations = x.copy(), observations.copy()
            x[done] = self.np_random.normal(size=(int(done.sum()), 3))
            observations[done] = x[done] * self.scale
        self.x = x
        if self.fault == "rewards (n, 1)":
            rewards = rewards[:, None]
        if self.fault == "terminated":
            return observations, rewards, False, truncated, infos
        return (th.from_numpy(observations) if self.fault == "tensor" else observations), rewards, terminated, truncated, infos


@pytest.mark.parametrize("normalized", [False, True])
def test_action_gradients_through_the_real_rollout(normalized: bool) -> None:
    env: Any = DifferentiableVecEnv(Numpy())
    env = VecNormalize(env) if normalized else env
    model, record = rollout(env, 12, policy_kwargs={"squash_actions": normalized})
    dones, truncated = np.array(record.dones), np.array(record.truncated)
    assert (dones[:-1] & truncated[:-1]).any() and (dones[:-1] & ~truncated[:-1]).any()
    # VecNormalize rounds observations and rewards to float32.
    assert_close(model, difference_gradients(model, LinearQuadratic(), record), 1e-5 if normalized else 1e-6)


def test_it_gives_the_training_that_torch_gives() -> None:
    class Same(LinearQuadratic):
        def initial_state(self, n: int, generator: th.Generator, options: Any = None) -> th.Tensor:
            return th.full((n, 3), 0.3, dtype=th.float64)

    class SameNumpy(Numpy):
        def reset(self, **kwargs: Any) -> Any:
            super().reset(**kwargs)
            self.x = np.full((self.num_envs, 3), 0.3)
            return self.x * self.scale, {}

        def step(self, actions: Any) -> Any:
            observations, rewards, terminated, truncated, infos = super().step(actions)
            done = terminated | truncated
            self.x[done] = 0.3
            observations[done] = 0.3 * self.scale
            return observations, rewards, terminated, truncated, infos

    policies = []
    for env in (DifferentiableVecEnv(SameNumpy(3)), TorchVecEnv(BatchedEnv(Same, 3, 5, limit=2.5))):
        model = GIPPO("MlpPolicy", env, n_steps=8, batch_size=24, n_epochs=1, seed=0, device="cpu").learn(96)
        assert len(model.ep_info_buffer) > 0
        policies.append(model.policy)
    for one, other in zip(*(policy.parameters() for policy in policies)):
        np.testing.assert_allclose(one.detach(), other.detach(), rtol=1e-4, atol=1e-6)


FAULTS = {
    "next step": "has the autoreset mode NEXT_STEP: gradients need one whose step that ends an episode resets it",
    "reset": r"Numpy.reset has returned a numpy array \(3, 3\) of float64; expected was \(observations, infos\)",
    "size": r"reset has returned a numpy array \(3, 2\) of float64 as observations; expected was a numpy array \(3, 3\)",
    "terminated": r"step has returned an object of type bool as terminated; expected was a numpy array \(3,\) of bools",
    "rewards (n, 1)": r"step has returned a numpy array \(3, 1\) of float64 as rewards; expected was a numpy array \(3,\)",
    "tensor": r"step has returned a tensor \(3, 3\) of float64 as observations; expected was a numpy array \(3, 3\)",
    "no final_obs": r'has ended an episode without infos\["final_obs"\], of length 3',
    "no vjp": "The step_gradient of Numpy \\(object\\) has no state_size: see sb3_gippo.StepGradient",
    "action (n, 1)": r"step_gradient has returned a numpy array \(3, 1\) of float64 as action; expected was .* \(3, 2\)",
    "one row": r"vjp has returned a tensor \(1, 2\) of float32 as cotangents of the action; expected was a tensor \(3, 2\)",
    "float64": r"vjp has returned a tensor \(3, 3\) of float64 as cotangents of the state; .* of float32, the type of the cot",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_ends_in_a_sentence(fault: str) -> None:
    with pytest.raises(ValueError, match=FAULTS[fault]):
        env = DifferentiableVecEnv(Numpy(fault=fault))
        env.env_method("set_differentiable", True)
        env.reset()
        for _ in range(6):
            env.step(np.zeros((3, 2)))


def test_what_is_no_differentiable_environment_is_told_so() -> None:
    class Silent(Numpy):
        def __getattribute__(self, name: str) -> Any:
            if name == "step_gradient":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(ValueError, match="Silent offers no step_gradient, the derivative of its last"):
        DifferentiableVecEnv(Silent())
    with pytest.raises(ValueError, match=r"object has no num_envs: a batched environment is a gymnasium\.vector\.VectorEnv"):
        DifferentiableVecEnv(object())


def test_the_checker_passes_what_is_right() -> None:
    report = check_differentiable_vec_env(Numpy(), n_episodes=3, max_steps=6)
    assert report.unjudged == 0 and report.transitions >= 6 and report.entries == report.transitions * 7 * 5
    torch = check_differentiable_vec_env(BatchedEnv(LinearQuadratic, 2, 4, limit=2.5), n_episodes=2, max_steps=5)
    assert torch.unjudged == 0 and torch.error < 0.1


WRONG = {
    "wrong": r"The gradient is wrong .*obs_action\[|state_action\[",
    "leaks": "A cotangent of environment 0 alone has reached another one",
    "mixes": "The same state and action gave another|Asking for gradients changes the obs",
    "not linear": "vjp of all outputs together is not the sum of those of each",
    "none is one": "vjp with None for the next state's cotangent is not that with zeros",
    "spent": "vjp of all outputs together is not the sum of those of each",
    "kept": r"step_gradient must be None after reset\(\)",
    "always": r"step_gradient is there after set_differentiable\(False\): it must be None",
    "next step": "autoreset mode NEXT_STEP",
}


@pytest.mark.parametrize("fault", WRONG)
def test_the_checker_names_what_is_wrong(fault: str) -> None:
    with pytest.raises(ValueError, match=WRONG[fault]):
        check_differentiable_vec_env(Numpy(fault=fault), n_episodes=2, max_steps=4)


def test_the_checker_asks_for_states() -> None:
    class Mute(Numpy):
        get_state = None  # type: ignore[assignment]

    with pytest.raises(GradientChannelError, match=r"Mute has no get_state\(\)"):
        check_differentiable_vec_env(Mute())
    with pytest.raises(GradientChannelError, match="The step_gradient of Numpy does not tell state and next_state"):
        check_differentiable_vec_env(Numpy(fault="untold"))


def test_a_time_limit_may_be_changed_while_it_trains() -> None:
    env = TorchVecEnv(BatchedEnv(LinearQuadratic, 2, 10))
    env.reset()
    lengths = []
    for step in range(12):
        if step == 4:
            env.set_attr("max_episode_steps", 3)
        for info in env.step(np.zeros((2, 2)))[3]:
            lengths += [info["episode"]["l"]] if "episode" in info else []
    assert lengths == [5, 5, 3, 3, 3, 3]
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1"):
        env.set_attr("max_episode_steps", 0)
