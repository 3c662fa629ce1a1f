"""The collector files each step's gradient, and notices every wrapper that gradients cannot follow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from gippo_envs.core import SingleEnv
from sb3_gippo import GIPPO, GradientChannelError, make_vec_env
from sb3_gippo.on_policy.actor import gaussian
from sb3_gippo.rollout.collector import check_integrity
from tests.reference import LinearQuadratic, linear_quadratic
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


class Repeat(gym.Wrapper):
    """Makes several steps and hands over the last one's gradient and reward."""

    def step(self, action: Any) -> Any:
        for _ in range(2):
            outcome = self.env.step(action)
            if outcome[2] or outcome[3]:
                break
        return outcome


class Skip(gym.Wrapper):
    """Makes a step of its own in between."""

    def step(self, action: Any) -> Any:
        outcome = self.env.step(action)
        if not (outcome[2] or outcome[3]):
            self.env.step(np.zeros_like(action))
        return outcome


class Nudge(gym.Wrapper):
    """Changes the state between steps, by next to nothing; or puts a part of it back."""

    def __init__(self, env: gym.Env, nudge: Callable[[np.ndarray], np.ndarray]):
        super().__init__(env)
        self.nudge = nudge

    def step(self, action: Any) -> Any:
        outcome = self.env.step(action)
        task: Any = self.env.unwrapped
        task.set_state(self.nudge(task.get_state()))
        return outcome


DETOURS: dict[str, Callable[[gym.Env], gym.Env]] = {
    "repeated": Repeat,
    "skipped": Skip,
    "nudged": lambda env: Nudge(env, lambda x: x * (1 + 1e-5)),
    "partly reset": lambda env: Nudge(env, lambda x: x * [0, 1, 1]),
}


@pytest.mark.parametrize("case", list(DETOURS))
def test_steps_that_do_not_follow_one_another_are_noticed(case: str) -> None:
    several = "^Environment 0 made 2 steps in one: a wrapper repeats steps"
    other = r"^The gradient of environment \d was taken from another state \(.* repeats or skips steps"
    with pytest.raises(GradientChannelError, match=several if case in ("repeated", "skipped") else other) as caught:
        learn(vec(DETOURS[case]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ["repeated", "skipped"])
def test_steps_that_do_not_follow_one_another_are_noticed_across_processes(case: str) -> None:
    env = SubprocVecEnv([lambda: DETOURS[case](linear_quadratic()) for _ in range(2)])
    try:
        with pytest.raises(GradientChannelError, match="was taken from another state"):
            learn(env)
    finally:
        env.close()


class RepeatBatch(VecEnvWrapper):
    """A batched environment stepped twice."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.venv.step_wait()
        self.venv.step_async(self.actions)
        return self.venv.step_wait()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions
        super().step_async(actions)


def test_steps_of_a_batched_environment_follow_one_another_too() -> None:
    with pytest.raises(GradientChannelError, match="was taken from another state"):
        learn(RepeatBatch(make_vec_env("CartPoleSwingUp-v0", 2, seed=0)))


class OwnStates(gym.Env):
    """x' = x + a; tells its states if it is asked to, has no ``get_state``, and keeps float32 on the outside."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float64)

    def __init__(self, drift: float = 0.0, reward: Callable[[float, Any], float] = lambda x, a: -x * x):
        self.drift, self.reward = drift, reward

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=1)
        return self.x.astype(np.float32), {}

    def step(self, action: Any) -> Any:
        before, one = self.x + self.drift, np.eye(1)
        self.x = before + np.asarray(action, dtype=np.float64)
        x = float(self.x[0])
        reward = self.reward(x, action)
        slope = np.array([-2 * x])
        grad = {"state_state": one, "state_action": one, "obs_state": one, "obs_action": one, "reward_state": slope}
        grad.update(reward_action=slope, action=action, obs=self.x.astype(np.float32), reward=np.float64(-x * x))
        grad.update(state=before.astype(np.float32), next_state=self.x.astype(np.float32))
        if self.reward is not OwnStates.plain:
            grad["reward"] = np.float64(self.reward(x, np.zeros(1)))
        return self.x.astype(np.float32), reward, False, False, {"grad": grad}

    @staticmethod
    def plain(x: float, action: Any) -> float:
        return -x * x


def test_states_an_environment_tells_by_itself_are_compared_up_to_their_rounding() -> None:
    learn(DummyVecEnv([OwnStates, OwnStates]))
    with pytest.raises(GradientChannelError, match="was taken from another state"):
        learn(DummyVecEnv([OwnStates, lambda: OwnStates(drift=1e-4)]))


def test_a_large_constant_in_the_reward_hides_no_change_of_it() -> None:
    """A wrapper's -0.01·|a|² beside an alive bonus of 1000: a hundred-thousandth of the value, most of the gradient."""
    learn(DummyVecEnv([lambda: OwnStates(reward=lambda x, a: 1000.0 - x * x)]))
    with pytest.raises(GradientChannelError, match="was taken at another reward"):
        learn(DummyVecEnv([lambda: OwnStates(reward=lambda x, a: 1000.0 - x * x - 0.01 * float(np.sum(a * a)))]))


@pytest.mark.parametrize("value", [0.0, 1e-42, 3e-39, -1e-300, 1e15])
def test_what_float32_makes_of_a_reward_is_no_change_of_it(value: float) -> None:
    learn(DummyVecEnv([lambda: OwnStates(reward=lambda x, a: value)]))
    learn(VecNormalize(DummyVecEnv([lambda: OwnStates(reward=lambda x, a: value)]), norm_reward=True))


def test_rounding_counts_by_the_size_of_the_row() -> None:
    near_0, far = np.array([[math.sin(math.pi), -1.0]]), np.array([[np.float32(math.sin(np.float32(math.pi))), -1.0]])
    rewards = np.zeros(1, dtype=np.float32)

    def check(taken_at: np.ndarray, seen: np.ndarray) -> None:
        gradient: Any = SimpleNamespace(action=np.zeros((1, 1)), observation=taken_at, reward=np.zeros(1))
        check_integrity(gradient, np.zeros((1, 1), dtype=np.float32), seen.astype(np.float32), rewards, None)

    check(near_0, far)  # 1.2e-16 and -8.7e-8
    check(np.array([[1e30, 1e22]]), np.array([[1e30, 1.1e22]]))
    with pytest.raises(GradientChannelError, match="another obs"):
        check(np.array([[1e-3, 0.0]]), np.array([[1e-3, 1e-6]]))
    with pytest.raises(GradientChannelError, match="another obs"):
        check(np.array([[np.inf, 0.0]]), np.array([[np.inf, 1e-6]]))
    check(np.array([[np.inf, np.nan]]), np.array([[np.inf, np.nan]]))


class WithoutTerminal(VecEnvWrapper):
    """A VecEnv that does not hand over the observation before the reset."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            info.pop("terminal_observation", None)
        return observations, rewards, dones, infos


def test_a_vecenv_without_terminal_observations_is_named_where_gradients_need_them_and_is_ppos_elsewhere() -> None:
    with pytest.raises(GradientChannelError, match=r"without infos\[\d\]\[\"terminal_observation\"\]"):
        learn(WithoutTerminal(vec(max_episode_steps=5)))
    plain = lambda: WithoutTerminal(sb3_make_vec_env("CartPole-v1", 2, seed=0))  # noqa: E731
    with pytest.warns(UserWarning, match="as plain PPO"):
        ours = GIPPO("MlpPolicy", plain(), n_steps=64, batch_size=64, seed=0, device="cpu").learn(256)
    theirs = PPO("MlpPolicy", plain(), n_steps=64, batch_size=64, seed=0, device="cpu").learn(256)
    assert all(th.equal(a, b) for a, b in zip(ours.policy.parameters(), theirs.policy.parameters()))


class DictEnv(gym.Env):
    """Observations in a dict, with a channel or without."""

    observation_space = spaces.Dict({"seen": spaces.Box(-np.inf, np.inf, (3,), np.float64)})
    action_space = spaces.Box(-2.0, 2.0, (2,), np.float64)

    def __init__(self, channel: bool):
        self.env = linear_quadratic(5, differentiable=channel)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        observation, info = self.env.reset(seed=seed)
        return {"seen": observation}, info

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return {"seen": observation}, *rest


def test_dict_observations_normalised_before_they_are_taken_apart() -> None:
    def make(channel: bool) -> VecEnv:
        env = DummyVecEnv([lambda: DictEnv(channel) for _ in range(2)])
        env.seed(3)
        return VecExtractDictObs(VecNormalize(env), "seen")

    with pytest.raises(GradientChannelError, match=r"^VecNormalize normalises Dict observations .* Put VecNormalize around"):
        learn(make(channel=True))
    with pytest.warns(UserWarning, match="as plain PPO"):
        ours = learn(make(channel=False))
    theirs = PPO("MlpPolicy", make(channel=False), n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(16)
    assert all(th.equal(a, b) for a, b in zip(ours.policy.parameters(), theirs.policy.parameters()))


class Differenced(OwnStates):
    """Takes its gradient from copies of itself that it steps; has a state, and does not tell it."""

    wind = 0.0

    def get_state(self) -> np.ndarray:
        return self.x.copy()

    def step(self, action: Any) -> Any:
        ends = []
        for change in (0.0, 1e-6):
            twin = copy.deepcopy(self)
            OwnStates.step(twin, np.asarray(action, dtype=np.float64) + change)
            ends.append(twin.x)
        outcome = super().step(action)
        grad = {key: value for key, value in outcome[4]["grad"].items() if key not in ("state", "next_state")}
        grad["state_action"] = ((ends[1] - ends[0]) / 1e-6)[:, None]
        return *outcome[:4], {"grad": grad}


def test_environments_that_tell_no_states_are_asked_and_left_as_they_were() -> None:
    for wrap in (lambda env: env, Monitor):
        env = DummyVecEnv([lambda wrap=wrap: wrap(Differenced()) for _ in range(2)])  # type: ignore[misc]
        before = list(env.envs)
        told: list[bool] = []

        def watch(locals_: Any, _: Any, env: VecEnv = env, told: list[bool] = told) -> bool:
            told.extend("state" in info["grad"] for info in locals_["infos"])
            env.set_attr("wind", 1.0)
            copy.deepcopy(env)
            return True

        GIPPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(16, callback=watch)
        assert told and all(told)
        assert env.envs == before and not any("step" in vars(layer.unwrapped) for layer in env.envs)
        assert wrap is Monitor or env.get_attr("wind") == [1.0, 1.0]
    with pytest.raises(GradientChannelError, match="made 2 steps in one"):
        learn(DummyVecEnv([lambda: Repeat(Differenced())]))


class Switchless(SingleEnv):
    """Never offers the channel."""

    def set_differentiable(self, differentiable: bool) -> None:
        pass


@pytest.mark.parametrize(
    "make, asked",
    [(Differenced, 2 * 8), (linear_quadratic, 1), (lambda: Switchless(LinearQuadratic), 1)],
    ids=["tells no states", "tells them", "without a channel"],
)
@pytest.mark.filterwarnings("ignore:GIPPO trains without gradients:UserWarning")
def test_environments_that_tell_their_states_or_give_no_gradients_are_asked_once_a_window(
    make: Callable[[], gym.Env], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[gym.Env] = []
    env = DummyVecEnv([make])
    kind: Any = type(env.envs[0].unwrapped)
    get_state = kind.get_state

    def counted(self: gym.Env) -> Any:
        calls.append(self)
        return get_state(self)

    monkeypatch.setattr(kind, "get_state", counted)
    model = GIPPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    for window in (1, 2):
        model.learn(8, reset_num_timesteps=False)
        assert len(calls) == window * asked


@pytest.mark.parametrize("case", ["repeated", "skipped"])
def test_repeated_steps_are_noticed_where_no_two_of_a_window_follow_one_another(case: str) -> None:
    wrap = DETOURS[case]
    kwargs: dict[str, Any] = {"n_steps": 1, "batch_size": 4, "seed": 0, "device": "cpu"}
    with pytest.raises(GradientChannelError, match=r"^Environment \d made 2 steps in one"):
        GIPPO("MlpPolicy", DummyVecEnv([lambda: wrap(Differenced())] * 4), **kwargs).learn(16)
    batched = RepeatBatch(make_vec_env("CartPoleSwingUp-v0", 4, seed=0))
    with pytest.raises(GradientChannelError, match="was taken from another state"):
        GIPPO("MlpPolicy", batched, **kwargs).learn(16)
    GIPPO("MlpPolicy", DummyVecEnv([Differenced] * 4), **kwargs).learn(16)


@pytest.mark.parametrize("state", [lambda self, full: full, lambda self: 1 / 0, lambda self: (np.zeros(3), 1), np.zeros(1)])
def test_some_other_method_of_that_name_is_no_state(state: Any) -> None:
    other = type("Other", (Differenced,), {"get_state": state})
    assert learn(DummyVecEnv([other, other]))._has_gradients
    plain = type("Plain", (gym.wrappers.TimeLimit,), {"get_state": state})
    env = lambda: DummyVecEnv([lambda: plain(gym.make("Pendulum-v1"), 50)])  # noqa: E731
    with pytest.warns(UserWarning, match="as plain PPO"):
        ours = learn(env())
    theirs = PPO("MlpPolicy", env(), n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(16)
    assert all(th.equal(a, b) for a, b in zip(ours.policy.parameters(), theirs.policy.parameters()))


class Deaf(VecEnvWrapper):
    """Has no single environments to ask."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise NotImplementedError

    def has_attr(self, attr_name: str) -> bool:
        return bool(self.get_attr(attr_name))

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError


def test_a_vecenv_without_single_environments_to_ask_is_ppos() -> None:
    with pytest.warns(UserWarning, match="as plain PPO"):
        learn(Deaf(sb3_make_vec_env("Pendulum-v1", 2, seed=0)))


def test_what_a_callback_does_to_policy_or_rewards() -> None:
    """The noise is that of the policy that acted; rewards must stay those whose gradients are kept."""

    class Anneal(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.model.policy.log_std.data.sub_(1.0)  # type: ignore[operator, union-attr]

    model = GIPPO("MlpPolicy", vec(n_envs=8), n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(128, callback=Anneal())
    assert model.rollout_buffer.noise.std() == pytest.approx(1.0, abs=0.2)

    def turn(locals_: Any, _: Any) -> bool:
        locals_["rewards"][:] *= -1
        return True

    with pytest.raises(GradientChannelError, match=r"^The reward of environment \d was changed after its step"):
        GIPPO("MlpPolicy", vec(), n_steps=8, batch_size=8, seed=0, device="cpu").learn(16, callback=turn)


def test_integer_observations_that_are_normalised_are_refused() -> None:
    class Integers(OwnStates):
        observation_space = spaces.Box(-100, 100, (1,), np.int64)

        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            return observation.astype(np.int64), info

        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            rest[-1]["grad"]["obs"] = observation.astype(np.int64)
            return observation.astype(np.int64), *rest

    learn(DummyVecEnv([Integers]))
    with pytest.raises(
        GradientChannelError, match=r"^The rollout buffer rounds what VecNormalize makes of int64 observations"
    ):
        learn(VecNormalize(DummyVecEnv([Integers])))


def test_a_tensor_that_hangs_on_a_graph_is_named() -> None:
    class Hanging(OwnStates):
        def step(self, action: Any) -> Any:
            outcome = super().step(action)
            outcome[4]["grad"]["obs_state"] = th.ones(1, 1).requires_grad_() * 1
            return outcome

    with pytest.raises(GradientChannelError, match=r"obs_state.\] of environment 1 is a tensor that hangs on a graph"):
        learn(DummyVecEnv([OwnStates, Hanging]))
