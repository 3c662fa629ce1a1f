"""check_differentiable_env passes environments that are right and names what is wrong with the others."""

from __future__ import annotations

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


class Swing(gym.Env[np.ndarray, np.ndarray]):
    """A damped pendulum by the day's book: derivatives by hand, nothing wrong. The broken ones below change one thing."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space: spaces.Space = spaces.Box(-2.0, 2.0, (1,), np.float64)
    dtype: Any = np.float64
    differentiable = False

    def set_differentiable(self, differentiable: bool) -> None:
        self.differentiable = differentiable

    def get_state(self) -> np.ndarray:
        return self.state.copy()

    def set_state(self, state: np.ndarray) -> None:
        self.state = state.copy()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(self.dtype)
        return self.observe(), {}

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
