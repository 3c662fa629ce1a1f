"""check_differentiable_env passes environments that are right and names what is wrong with the others."""

from __future__ import annotations

import itertools
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_gippo import GradientChannelError, check_differentiable_env
from sb3_gippo.checker.differences import central_differences
from tests.reference import linear_quadratic


class Simulation(gym.Env[np.ndarray, np.ndarray]):
    """Has a state and a switch for the channel; subclasses have the rest."""

    differentiable = False

    def set_differentiable(self, differentiable: bool) -> None:
        self.differentiable = differentiable

    def get_state(self) -> np.ndarray:
        return self.state.copy()

    def set_state(self, state: np.ndarray) -> None:
        self.state = state.copy()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.initial_state()
        return self.observe(), {}

    def initial_state(self) -> np.ndarray:
        raise NotImplementedError

    def observe(self) -> np.ndarray:
        raise NotImplementedError


class Swing(Simulation):
    """A damped pendulum by the day's book: derivatives by hand, nothing wrong. The broken ones below change one thing."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space: spaces.Space = spaces.Box(-2.0, 2.0, (1,), np.float64)
    dtype: Any = np.float64

    def initial_state(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(self.dtype)

    def observe(self) -> np.ndarray:
        angle, speed = self.state
        return np.array([np.sin(angle), np.cos(angle), speed], dtype=self.dtype)

    def force(self, action: np.ndarray) -> Any:
        return action[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        h = self.dtype(0.05)
        angle, speed = self.state
        new_speed = speed + h * (np.sin(angle) - self.dtype(0.1) * speed + self.force(action))
        new_angle = angle + h * new_speed
        self.state = np.array([new_angle, new_speed], dtype=self.dtype)
        reward = -(new_angle**2) - self.dtype(0.1) * action[0] ** 2
        obs = self.observe()
        info = {}
        if self.differentiable:
            slope = np.array([h * np.cos(angle), 1 - self.dtype(0.1) * h])
            state_state = np.stack([np.array([1.0, 0.0]) + h * slope, slope]).astype(self.dtype)
            state_action = np.array([[h * h], [h]], dtype=self.dtype)
            to_obs = np.array([[np.cos(new_angle), 0], [-np.sin(new_angle), 0], [0, 1]], dtype=self.dtype)
            info["grad"] = {
                "state_state": state_state,
                "state_action": state_action,
                "obs_state": to_obs @ state_state,
                "obs_action": to_obs @ state_action,
                "reward_state": -2 * new_angle * state_state[0],
                "reward_action": -2 * new_angle * state_action[0] - self.dtype(0.2) * action,
                "action": action.copy(),
                "obs": obs.copy(),
                "reward": reward,
            }
        return obs, float(reward), bool(abs(new_angle) > 1.2), False, info


class Swing32(Swing):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    dtype = np.float32


def changed(key: str, change: Any, base: type[Swing] = Swing) -> type[Swing]:
    """An environment that changes one entry of ``info["grad"]``; ``None`` drops it."""

    class Changed(base):  # type: ignore[misc, valid-type]
        def step(self, action: np.ndarray) -> Any:
            result = super().step(action)
            grad = result[-1].get("grad")
            if grad is not None:
                grad[key] = change(grad[key])
                if grad[key] is None:
                    del grad[key]
            return result

    return Changed


def scaled(row: int, factor: float) -> Any:
    def change(block: np.ndarray) -> np.ndarray:
        block = block.copy()
        block[row] *= factor
        return block

    return change


def absent(env: Swing) -> None:
    raise AttributeError("as if it were not there")


class NoState(Swing):
    get_state = property(absent)  # type: ignore[assignment]


class UnknownKey(Swing):
    def step(self, action: np.ndarray) -> Any:
        result = super().step(action)
        if "grad" in result[-1]:
            result[-1]["grad"]["state_acton"] = result[-1]["grad"].pop("state_action")
        return result


class Noisy(Swing):
    def force(self, action: np.ndarray) -> Any:
        return action[0] + 1e-3 * self.np_random.normal()


class RemembersForce(Swing):
    """The actuator lags, and its last force is neither in the state nor reset."""

    last = 0.0

    def force(self, action: np.ndarray) -> Any:
        force, self.last = action[0] + 0.1 * self.last, action[0]
        return force


class ForgetsForce(RemembersForce):
    """The same, reset at least."""

    def reset(self, **kwargs: Any) -> Any:
        self.last = 0.0
        return super().reset(**kwargs)


class IgnoresSeed(Swing):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return super().reset(seed=None)


class SeedsNumpy(Swing):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        np.random.seed(seed)
        return super().reset(seed=seed)


class SeedsTorch(Swing):
    def step(self, action: np.ndarray) -> Any:
        th.manual_seed(0)
        return super().step(action)


class DrawsFromRandom(Swing):
    def reset(self, **kwargs: Any) -> Any:
        random.random()
        return super().reset(**kwargs)


class OneObservationArray(Swing):
    def observe(self) -> np.ndarray:
        if not hasattr(self, "array"):
            self.array = np.zeros(3)
        self.array[:] = super().observe()
        return self.array


class OneJacobianArray(Swing):
    def step(self, action: np.ndarray) -> Any:
        result = super().step(action)
        if "grad" in result[-1]:
            if not hasattr(self, "array"):
                self.array = np.zeros((2, 2))
            self.array[:] = result[-1]["grad"]["state_state"]
            result[-1]["grad"]["state_state"] = self.array
        return result


class ScalesTheGivenAction(Swing):
    def step(self, action: np.ndarray) -> Any:
        result = super().step(action)
        action *= 0.5
        return result


class WritesIntoTheGivenState(Swing):
    def set_state(self, state: np.ndarray) -> None:
        self.state = state

    def step(self, action: np.ndarray) -> Any:
        before = self.state
        result = super().step(action)
        before[:] = self.state
        return result


class SmoothedForGradients(Swing):
    def force(self, action: np.ndarray) -> Any:
        return 0.999 * action[0] if self.differentiable else action[0]


class NeverOff(Swing):
    differentiable = True

    def set_differentiable(self, differentiable: bool) -> None:
        pass


class Silent(Swing):
    def set_differentiable(self, differentiable: bool) -> None:
        pass


class AlreadyReset(Swing):
    """Returns, with the end of an episode, the observation of the next one."""

    def step(self, action: np.ndarray) -> Any:
        _, reward, terminated, truncated, info = super().step(action)
        obs = self.reset()[0] if terminated else self.observe()
        return obs, reward, terminated, truncated, info


class Rescales(Swing):
    """Differentiates by the force, not by the action."""

    def force(self, action: np.ndarray) -> Any:
        return 3.0 * action[0]


class Explodes(Swing):
    def force(self, action: np.ndarray) -> Any:
        return np.inf

    def step(self, action: np.ndarray) -> Any:
        with np.errstate(invalid="ignore"):
            return super().step(action)


class Discrete(Swing):
    action_space = spaces.Discrete(2)


BROKEN: dict[str, tuple[type[Swing], str]] = {
    "one wrong entry": (
        changed("state_action", scaled(1, 1.01)),
        r"state_action\[1, 0\]: given 0.0505, central difference 0.05 ",
    ),
    "a wrong sign": (changed("reward_action", lambda x: -x), r"reward_action\[0\]: given"),
    "a transposed Jacobian": (changed("state_state", np.transpose), r"state_state\[\d, \d\]: given"),
    "a forgotten block": (changed("reward_state", lambda x: None), r"reward_state\[\d\]: given 0 \(missing, so zero\)"),
    "gradient by the force": (Rescales, r"_action\[.*\]: given .*, central difference"),
    "a wrong shape": (changed("obs_state", np.transpose), "state of size 2 in 'state_state' .* but of size 3 in 'obs_state'"),
    "not a number": (changed("obs_state", scaled(2, np.nan)), r"obs_state\[2, 0\] is not finite"),
    "half precision": (changed("state_state", np.float16), r"\['state_state'\] is float16"),
    "an unknown key": (UnknownKey, "unknown key 'state_acton'"),
    "no values it was taken at": (changed("obs", lambda x: None), "lacks 'obs'"),
    "another action": (changed("action", lambda x: 0.9 * x), "taken at another action"),
    "another reward": (changed("reward", lambda x: x + 1), "taken at another reward"),
    "an observation after the reset": (AlreadyReset, "taken at another obs"),
    "states of two sizes": (
        changed("state_state", lambda x: np.eye(3)),
        "state of size 3 in 'state_state' .* but of size 2 in 'state_action'",
    ),
    "no accessors": (NoState, r"has no get_state\(\)"),
    "no channel": (Silent, r'no info\["grad"\]'),
    "a channel that stays on": (NeverOff, r"after set_differentiable\(False\)"),
    "other numbers with gradients": (SmoothedForGradients, "Asking for gradients changes the obs"),
    "noise in the step": (Noisy, "The same state and action gave another"),
    "a state that is not all": (ForgetsForce, "The same state and action gave another"),
    "a leak across the reset": (RemembersForce, "something leaks across the reset"),
    "an ignored seed": (IgnoresSeed, r"generator that reset\(seed=...\) does not seed"),
    "reseeding numpy": (SeedsNumpy, r"reset\(\) changes the global random generator of numpy"),
    "reseeding torch": (SeedsTorch, r"step\(\) changes the global random generator of torch"),
    "drawing from random": (DrawsFromRandom, r"reset\(\) changes the global random generator of random"),
    "one array for all observations": (OneObservationArray, r"The observation of \w+\(\) changed afterwards"),
    "one array for all Jacobians": (OneJacobianArray, r"\['state_state'\] changed afterwards"),
    "writing into the action": (ScalesTheGivenAction, r"The action given to step\(\) changed afterwards"),
    "writing into the given state": (WritesIntoTheGivenState, r"given to set_state\(\) changed afterwards"),
    "a state that is not finite": (Explodes, "is not finite"),
    "discrete actions": (Discrete, "action space is Discrete"),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_environment_is_caught_and_its_fault_named(fault: str) -> None:
    env_class, message = BROKEN[fault]
    with pytest.raises(GradientChannelError, match=message):
        check_differentiable_env(env_class())


class Mixed(Swing):
    """Computes in float64 and takes actions in float32, as SB3 recommends."""

    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)


@pytest.mark.parametrize("env_class", [Swing, Swing32, Mixed])
def test_a_right_environment_passes(env_class: type[Swing]) -> None:
    report = check_differentiable_env(env_class())
    assert report.transitions == 15 and report.entries == 15 * 6 * 3 and report.error < 0.5
    assert "270 derivatives at 15 transitions agree" in str(report)


@pytest.mark.parametrize("env_class", [Swing32, Mixed])
def test_float32_shows_larger_faults(env_class: type[Swing]) -> None:
    with pytest.raises(GradientChannelError, match="compared as float32"):
        check_differentiable_env(changed("state_action", scaled(1, 1.1), env_class)())


def test_a_tolerance_admits_rougher_gradients() -> None:
    rough = changed("state_action", scaled(1, 1.0005))()
    with pytest.raises(GradientChannelError, match="The gradient is wrong"):
        check_differentiable_env(rough)
    assert 0.1 < check_differentiable_env(rough, tolerance=1e-3).error < 1


def test_gradients_in_every_step_need_no_switch() -> None:
    class Always(Swing):
        differentiable = True
        set_differentiable = property(absent)  # type: ignore[assignment]

    check_differentiable_env(Always())


def test_wrappers_are_checked_too() -> None:
    check_differentiable_env(gym.wrappers.TimeLimit(Swing(), 20))
    for wrapped, what in (
        (gym.wrappers.RescaleAction(Swing(), np.float64(-1), np.float64(1)), "action"),
        (gym.wrappers.TransformReward(Swing(), lambda r: 0.1 * r), "reward"),
        (gym.wrappers.TransformObservation(Swing(), lambda o: 0.1 * o, None), "obs"),
    ):
        with pytest.raises(GradientChannelError, match=f"taken at another {what} .* A wrapper that changes it"):
            check_differentiable_env(wrapped)


def test_a_batched_environment_is_refused() -> None:
    with pytest.raises(GradientChannelError, match="BatchedEnv is not a gymnasium"):
        check_differentiable_env(gym.make_vec("DeJong-v0", num_envs=2))  # type: ignore[arg-type]


def test_terminations_and_linear_quadratic_pass() -> None:
    assert check_differentiable_env(linear_quadratic(limit=2.5)).error < 0.5


REGISTERED = [env_id for env_id, spec in gym.registry.items() if spec.entry_point == "gippo_envs.core:SingleEnv"]


@pytest.mark.parametrize("env_id", REGISTERED)
def test_registered_environments_pass(env_id: str) -> None:
    assert check_differentiable_env(gym.make(env_id, dtype="float64"), n_episodes=3, max_steps=30, n_checked=2).error < 1


@pytest.mark.parametrize("env_id", ["DeJong-v0", "Ackley-v0", "CartPoleSwingUp-v0"])
def test_registered_environments_pass_in_float32(env_id: str) -> None:
    assert check_differentiable_env(gym.make(env_id), n_episodes=3, max_steps=30).error < 1


def test_differences_bound_the_true_slope() -> None:
    """Of a smooth function, at a kink, beside one, and at a jump."""

    def function(x: np.ndarray) -> np.ndarray:
        return np.array([np.sin(3 * x[0]), abs(x[0]), abs(x[0] - 3e-6), float(x[0] > 3e-6), x[0] * x[1]])

    x = np.array([0.0, 2.0])
    differences = central_differences(function, np.copy, x, np.full(2, 1e-5), np.full(2, 2.3e-16))
    true = np.array([[3, 0], [1, 0], [-1, 0], [0, 0], [2, 0]])
    assert (differences.low <= true).all() and (true <= differences.high).all()
    smooth = [0, 4]
    np.testing.assert_allclose(differences.central[smooth], true[smooth], atol=1e-8)
    assert (differences.high - differences.low)[smooth].max() < 1e-7
    # At the kink both slopes are right, and no others.
    assert differences.low[1, 0] == pytest.approx(-1) and differences.high[1, 0] == pytest.approx(1)


class Units(Simulation):
    """
    Two coupled numbers of any size and any types, right in all of them. Subclasses change one thing.

    x' = M x + size (0.1 sin(x reversed / size) + 0.1 a), observed with a sine of the first, r = -|x' / size|² - 0.1 |a|².
    """

    size = 1.0
    start = 0.5
    state_type: Any = np.float64
    action_type: Any = np.float64
    obs_type: Any = np.float64
    low, high = np.array([-1.0, -1.0]), np.array([1.0, 1.0])
    ends = False

    def __init__(self) -> None:
        low, high = (bound.astype(self.action_type) for bound in (self.low, self.high))
        self.action_space = spaces.Box(low, high, dtype=self.action_type)
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), self.obs_type)

    def initial_state(self) -> np.ndarray:
        return (self.size * (self.start + 0.3 * self.np_random.uniform(-1, 1, 2))).astype(self.state_type)

    def observe(self) -> np.ndarray:
        sine = self.size * np.sin(self.state[:1] / self.state_type(self.size))
        return np.concatenate([self.state, sine]).astype(self.obs_type)

    def reward(self, reward: Any) -> Any:
        return float(reward)

    def blocks(self, grad: dict[str, Any]) -> dict[str, Any]:
        return grad

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict]:
        kind, before = self.state_type, self.state
        size, tenth = kind(self.size), kind(0.1)
        matrix = np.array([[0.9, 0.2], [-0.1, 0.8]], dtype=kind)
        x = (matrix @ before + tenth * size * np.sin(before[::-1] / size) + tenth * size * action).astype(kind)
        reward = self.reward(-(x / size) @ (x / size) - tenth * (action @ action))
        self.state = x
        obs, info = self.observe(), {}
        if self.differentiable:
            by_state = (matrix + tenth * np.diag(np.cos(before[::-1] / size))[:, ::-1]).astype(kind)
            by_action = tenth * size * np.eye(2, dtype=kind)
            to_obs = np.array([[1, 0], [0, 1], [np.cos(x[0] / size), 0]], dtype=kind)
            to_reward = -2 * x / size / size
            info["grad"] = self.blocks(
                {
                    "state_state": by_state,
                    "state_action": by_action,
                    "obs_state": to_obs @ by_state,
                    "obs_action": to_obs @ by_action,
                    "reward_state": to_reward @ by_state,
                    "reward_action": to_reward @ by_action - kind(0.2) * action,
                    "action": action.copy(),
                    "obs": obs.copy(),
                    "reward": reward,
                    "state": before.copy(),
                    "next_state": x.copy(),
                }
            )
        return obs, reward, self.ends, False, info


def units(**attributes: Any) -> Units:
    return type("OtherUnits", (Units,), attributes)()


SINGLE: dict[str, Any] = {"state_type": np.float32, "action_type": np.float32, "obs_type": np.float32}
TYPES: dict[str, dict[str, Any]] = {
    "float64": {},
    "float32": SINGLE,
    "a float32 reward": {"reward": lambda self, reward: np.float32(reward)},
    "a float32 reward as float": {"reward": lambda self, reward: float(np.float32(reward))},
    "float32 observations": {"obs_type": np.float32},
    "float32 actions": {"action_type": np.float32},
    "a float32 state": {"state_type": np.float32},
}


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("types", list(TYPES))
def test_right_environments_pass_in_all_types_and_units(types: str, size: float) -> None:
    report = check_differentiable_env(units(size=size, **TYPES[types]))
    assert report.error < 0.5 and report.unjudged == 0 and report.entries == 15 * 6 * 4


WRONG: dict[str, Any] = {"missing": lambda block: None, "negative": np.negative, "too large": lambda block: 1.1 * block}
BLOCKS = ("state_state", "state_action", "obs_state", "obs_action", "reward_state", "reward_action")


def with_block(key: str, change: Any) -> Any:
    """A ``blocks`` of Units that changes one."""

    def blocks(self: Units, grad: dict[str, Any]) -> dict[str, Any]:
        changed = {**grad, key: change(grad[key])}
        return {key: block for key, block in changed.items() if block is not None}

    return blocks


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("types", list(TYPES))
def test_wrong_blocks_are_caught_in_all_types_and_units(types: str, size: float) -> None:
    wrong = dict(WRONG)
    if types == "float64":
        wrong["a percent off"] = lambda block: 1.01 * block
    for key, change in itertools.product(BLOCKS, wrong.values()):
        env = units(size=size, blocks=with_block(key, change), **TYPES[types])
        with pytest.raises(GradientChannelError, match=rf"The gradient is wrong .*: {key}\["):
            check_differentiable_env(env, n_episodes=1, max_steps=5, n_checked=1)


def previous(self: Any, grad: dict[str, Any]) -> dict[str, Any]:
    """The derivatives of the step before."""
    last, self.last = getattr(self, "last", grad), grad
    return {**grad, **{key: last[key] for key in BLOCKS}}


def test_transposed_and_stale_blocks_are_caught() -> None:
    with pytest.raises(GradientChannelError, match=r"The gradient is wrong .*: state_state\["):
        check_differentiable_env(units(blocks=with_block("state_state", lambda block: block.T.copy())))
    with pytest.raises(GradientChannelError, match=r"leaks across the reset|The gradient is wrong"):
        check_differentiable_env(units(blocks=previous))


BOUNDS: dict[str, dict[str, Any]] = {
    "from zero on": {"low": np.zeros(2), "high": np.full(2, np.inf)},
    "up to zero": {"low": np.full(2, -np.inf), "high": np.zeros(2)},
    "none": {"low": np.full(2, -np.inf), "high": np.full(2, np.inf)},
    "none, float32": {"low": np.full(2, -np.inf), "high": np.full(2, np.inf), "action_type": np.float32},
    "narrow": {"low": np.full(2, 5.0), "high": np.full(2, 5.0 + 1e-6)},
    "wide": {"low": np.full(2, -1e6), "high": np.full(2, 1e6)},
    "an end at once": {"ends": True},
    "integer observations": {
        "observe": lambda self: np.array([1, 2, 3]),
        "blocks": lambda self, grad: {**grad, "obs_state": np.zeros((3, 2)), "obs_action": np.zeros((3, 2))},
    },
}


@pytest.mark.parametrize("case", list(BOUNDS))
def test_right_environments_pass_whatever_their_bounds_and_ends(case: str) -> None:
    report = check_differentiable_env(units(**BOUNDS[case]))
    assert report.error < 0.5 and report.unjudged == 0


def test_a_state_that_starts_at_zero_passes() -> None:
    class Rests(Units):
        def reset(self, **kwargs: Any) -> Any:
            super().reset(**kwargs)
            self.state = np.zeros(2)
            return self.observe(), {}

    for max_steps in (1, 10):
        assert check_differentiable_env(Rests(), max_steps=max_steps).unjudged == 0


class Turns(Units):
    """Two angles that are kept within a half turn, and start next to it."""

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self.state = np.array([np.pi, -np.pi]) + self.np_random.uniform(-1e-6, 1e-6, 2)
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.array([*np.sin(self.state), np.cos(self.state[0])])

    def step(self, action: np.ndarray) -> Any:
        before = self.state
        self.state = (before + 1e-6 * action + np.pi) % (2 * np.pi) - np.pi
        obs, reward = self.observe(), float(np.cos(self.state).sum())
        to_obs, to_reward = np.zeros((3, 2)), -np.sin(self.state)
        to_obs[[0, 1], [0, 1]], to_obs[2, 0] = np.cos(self.state), -np.sin(self.state[0])
        blocks = {"state_state": np.eye(2), "obs_state": to_obs, "reward_state": to_reward}
        by_action = {f"{key.split('_')[0]}_action": 1e-6 * block for key, block in blocks.items()}
        values = {"action": action.copy(), "obs": obs.copy(), "reward": reward}
        grad = {**blocks, **by_action, **values, "state": before.copy(), "next_state": self.state.copy()}
        return obs, reward, False, False, {"grad": grad} if self.differentiable else {}


def test_angles_that_wrap_pass() -> None:
    assert check_differentiable_env(Turns(), n_episodes=3, n_checked=10).error < 1


def test_integer_actions_are_refused() -> None:
    class Steps(Swing):
        action_space = spaces.Box(-2, 2, (1,), np.int64)

    with pytest.raises(GradientChannelError, match="The actions are int64: gradients need float32 or float64"):
        check_differentiable_env(Steps())


@pytest.mark.parametrize("key, when", [("state", "before"), ("next_state", "after")])
def test_the_states_that_a_gradient_names_are_those_before_and_after_the_step(key: str, when: str) -> None:
    right = units(blocks=lambda self, grad: {**grad, key: grad[key].astype(np.float32)})
    check_differentiable_env(right, n_episodes=1, n_checked=1)
    only = ("action", "obs", "reward", "state", "next_state")
    nothing = units(blocks=lambda self, grad: {name: grad[name] for name in only})
    with pytest.raises(GradientChannelError, match="missing, so zero"):
        check_differentiable_env(nothing)
    other = "state" if key == "next_state" else "next_state"
    value = rf"'{key}'\] must be what get_state\(\) returns {when} the step, and is not: its entry"
    wrong: list[tuple[Any, str]] = [
        (lambda self, grad: {**grad, key: grad[key] + [0, 1e-9]}, f"{value} 1 is"),
        (lambda self, grad: {**grad, key: grad[other]}, value),
        (lambda self, grad: {**grad, key: grad[key][:1]}, rf"of size 2 in 'state_state' .* but of size 1 in '{key}'"),
    ]
    for blocks, message in wrong:
        with pytest.raises(GradientChannelError, match=message):
            check_differentiable_env(units(blocks=blocks))


def test_small_numbers_that_leak_are_noticed() -> None:
    class Leaks(Units):
        size = 1e-6
        steps = 0

        def observe(self) -> np.ndarray:
            self.steps += 1
            return super().observe() + 1e-12 * self.steps

    with pytest.raises(GradientChannelError, match="leaks across the reset"):
        check_differentiable_env(Leaks())


def test_an_action_without_room_is_not_judged() -> None:
    report = check_differentiable_env(units(low=np.array([0.5, -1.0]), high=np.array([0.5, 1.0])))
    assert report.unjudged == 15 * 6 and report.error < 0.5
    assert "270 of 360 derivatives at 15 transitions agree" in str(report)
    assert "90 cannot be judged by differences, so state_action[0, 0]: given 0.1, and from -inf to inf" in str(report)


class Rough(Swing32):
    """A force that float32 can hardly follow, forgotten in the gradient."""

    frequency = 3e3

    def force(self, action: np.ndarray) -> Any:
        return action[0] + np.sin(self.dtype(self.frequency) * self.state[0])


class Jagged(Rough):
    """One that it cannot follow."""

    frequency = 3e4


class RightlyRough(Rough):
    """The former, with its derivative."""

    def step(self, action: np.ndarray) -> Any:
        before = self.state[0]
        result = super().step(action)
        grad = result[-1].get("grad")
        if grad is not None:
            h, frequency, after = self.dtype(0.05), self.dtype(self.frequency), self.state[0]
            by_force = np.array([[h * h], [h]]) * frequency * np.cos(frequency * before)
            to_obs = np.array([[np.cos(after), 0], [-np.sin(after), 0], [0, 1]], dtype=self.dtype)
            grad["state_state"] = grad["state_state"] + (by_force * np.array([1.0, 0.0])).astype(self.dtype)
            grad["obs_state"] = to_obs @ grad["state_state"]
            grad["reward_state"] = -2 * after * grad["state_state"][0]
        return result


def test_agreement_is_not_claimed_where_differences_show_nothing() -> None:
    with pytest.raises(GradientChannelError, match=r"The gradient is wrong .*state\["):
        check_differentiable_env(Rough())
    assert check_differentiable_env(RightlyRough()).error < 1
    report = check_differentiable_env(Jagged())
    assert report.unjudged > 0 and "cannot be judged by differences, so state_state[" in str(report)
