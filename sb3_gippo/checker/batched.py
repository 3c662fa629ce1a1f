"""check_differentiable_vec_env: whether a batched environment's step gradients are the derivatives of what it does."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_gippo.checker.checker import GradientReport, check_differentiable_env
from sb3_gippo.rollout.batched import BatchedContract, check_batched_env
from sb3_gippo.rollout.step_gradient import GradientChannelError, StepGradient, states_of


def check_differentiable_vec_env(
    env: Any,
    n_episodes: int = 5,
    max_steps: int = 50,
    n_checked: int = 3,
    tolerance: float | None = None,
    seed: int = 0,
) -> GradientReport:
    """
    Check the step gradients of a batched environment, as :func:`~sb3_gippo.checker.check_differentiable_env` checks those of
    a single one, by differences through the batched step: each episode looks at another environment of the batch, while the
    others get random actions, so that nothing of them may show in it.

    Checked as well are shapes and types of all that is returned, that a cotangent of one environment reaches no other, that
    ``vjp`` is linear, gives the same when it is asked again and takes ``None`` for a next state's zero, and that there is no
    gradient after a reset, nor where it was switched off.

    The environment needs ``get_state() -> (N, n)`` and ``set_state(x)``, and its gradients tell ``state`` and
    ``next_state``. Let it compute in float64 if it can, and have two environments at least, or nothing is known of their
    independence.

    :param env: a :class:`~sb3_gippo.rollout.batched.DifferentiableVectorEnv` (of a ``DifferentiableVecEnv``: its ``env``);
        it is reset, and gradients stay switched on
    :param n_episodes: number of rollouts with random actions
    :param max_steps: where rollouts are cut
    :param n_checked: of each rollout's transitions, how many are compared with differences, the last one always
    :param tolerance: relative tolerance of derivatives; ``None`` for what their types can show
    :param seed: of the rollouts
    :return: what was compared
    :raises ValueError: if it is no such environment, in a sentence that names the cure
    :raises GradientChannelError: at the first fault, named in a sentence
    """
    check_batched_env(env)
    for name in ("get_state", "set_state"):
        if not callable(getattr(env, name, None)):
            raise GradientChannelError(
                f"{type(env).__name__} has no {name}(): to be compared with differences it must hand out its differentiable "
                "states by `get_state() -> (N, n)` and take them back by `set_state(x)`."
            )
    report = GradientReport()
    for episode in range(n_episodes):
        one = OneOfBatch(env, episode % env.num_envs, seed + episode)
        found = check_differentiable_env(one, 1, max_steps, n_checked, tolerance, seed + episode)
        report = _sum(report, found)
    _check_silence(env)
    return report


class OneOfBatch(gym.Env[np.ndarray, np.ndarray]):
    """
    One environment of a batch as a single one with dense gradients. The others get random actions.

    :param env: the batch
    :param index: which one
    :param seed: of the actions of the others
    """

    def __init__(self, env: Any, index: int, seed: int):
        self.env, self.index = env, index
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.metadata = {"render_modes": []}
        self.contract = BatchedContract(env)
        self.switchable = hasattr(env, "set_differentiable")
        self.differentiable = True
        self.rng = np.random.default_rng(seed)
        self.after: np.ndarray | None = None
        """the state in which the last step ended, where the environment was reset since"""

    def set_differentiable(self, differentiable: bool) -> None:
        """Switch ``info["grad"]`` on or off."""
        self.differentiable = differentiable

    def _switch(self, on: bool) -> None:
        if self.switchable:
            self.env.set_differentiable(on)

    def _states(self) -> np.ndarray:
        states = self.env.get_state()
        if not isinstance(states, np.ndarray) or states.ndim != 2 or len(states) != self.env.num_envs:
            raise GradientChannelError(
                f"get_state() returned {getattr(states, 'shape', type(states).__name__)}: it must be a numpy array (N, n), "
                f"with N = {self.env.num_envs}."
            )
        return states

    def get_state(self) -> np.ndarray:
        """:return: (n,), before any reset"""
        return self._states()[self.index].copy() if self.after is None else self.after.copy()

    def set_state(self, state: np.ndarray) -> None:
        """:param state: (n,)"""
        states = self._states().copy()
        states[self.index] = state
        self.env.set_state(states)
        self.after = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        outcome = self.env.reset(seed=seed, options=options)
        self.contract.check_reset(outcome)
        self.after = None
        return outcome[0][self.index].copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        space: Any = self.action_space
        low, high = np.clip(space.low, -1.0, None), np.clip(space.high, None, 1.0)
        low, high = np.where(low < high, low, space.low), np.where(low < high, high, space.high)
        actions = self.rng.uniform(low, high, (self.env.num_envs, *space.shape)).astype(space.dtype)
        actions[self.index] = action
        before = self._states().copy()
        self._switch(self.differentiable)
        outcome = self.env.step(actions)
        self.contract.check_step(outcome)
        observations, rewards, terminated, truncated, infos = outcome
        done = bool(terminated[self.index] or truncated[self.index])
        observation = infos["final_obs"][self.index] if done else observations[self.index]
        info: dict[str, Any] = {}
        if self.differentiable:
            gradient = self._gradient()
            info["grad"] = dense(gradient, self.index)
            self.after = gradient.next_state[self.index].copy() if done else None  # type: ignore[attr-defined]
        else:
            if self.switchable and self.env.step_gradient is not None:
                raise GradientChannelError(
                    f"{type(self.env).__name__}.step_gradient is there after set_differentiable(False): it must be None."
                )
            self.after = self._next_state(before, actions) if done else None
        result = np.array(observation), rewards[self.index], bool(terminated[self.index]), bool(truncated[self.index])
        return *result, info

    def _gradient(self) -> StepGradient:
        gradient = self.env.step_gradient
        name = type(self.env).__name__
        if gradient is None:
            raise GradientChannelError(
                f"{name}.step_gradient is None after a step: it must be the step's derivative, once gradients are switched on "
                "by set_differentiable(True) or at construction."
            )
        self.contract.check_gradient(gradient)
        if states_of(gradient) is None:
            raise GradientChannelError(
                f"The step_gradient of {name} does not tell state and next_state, (N, n) each: to be checked it must, for "
                "after an episode's end get_state() is that of the next one."
            )
        return gradient

    def _next_state(self, before: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """The state in which a step ended that was made without gradients: it is made again."""
        self.env.set_state(before)
        self._switch(True)
        self.env.step(actions)
        after: np.ndarray = self._gradient().next_state[self.index].copy()  # type: ignore[attr-defined]
        self._switch(False)
        return after


def dense(gradient: StepGradient, index: int) -> dict[str, Any]:
    """
    The Jacobians of one environment, by one ``vjp`` for every output, after a look at the ``vjp`` itself.

    :param gradient: of a step of N environments, which tells its states
    :param index: of the environment
    :return: its ``info["grad"]``
    :raises GradientChannelError: if a cotangent reaches another environment, or ``vjp`` is not linear
    """
    n, k = gradient.state_size, gradient.observation.shape[1]
    n_envs, outputs = len(gradient.reward), n + k + 1
    # A cotangent passes through the type of what it belongs to.
    wide = all(array.dtype == np.float64 for array in (gradient.observation, gradient.reward, *(states_of(gradient) or ())))
    dtype = th.float64 if wide else th.float32

    def pull(bar: th.Tensor, with_state: bool = True) -> np.ndarray:
        """(N, n + k + 1) to (N, n + m)"""
        state_bar = bar[:, :n].clone() if with_state else None
        pulled = gradient.vjp(state_bar, bar[:, n:-1].clone(), bar[:, -1].clone())
        return np.concatenate([each.detach().cpu().numpy() for each in pulled], axis=1)

    rows = []
    for output in range(outputs):
        unit = th.zeros(n_envs, outputs, dtype=dtype)
        unit[index, output] = 1.0
        rows.append(pull(unit))
        others = np.delete(rows[-1], index, axis=0)
        if (others != 0).any():
            raise GradientChannelError(
                f"A cotangent of environment {index} alone has reached another one: the environments of a batch must not "
                "depend on one another (a mean or a normalisation over the batch?)."
            )
    jacobian = np.stack([row[index] for row in rows])
    _check_linear(pull, jacobian, n, n_envs, index, dtype)
    named = {"state": jacobian[:n], "obs": jacobian[n:-1], "reward": jacobian[-1]}
    grad: dict[str, Any] = {}
    for name, block in named.items():
        grad[f"{name}_state"], grad[f"{name}_action"] = block[..., :n], block[..., n:]
    for key, name in (("action", "action"), ("obs", "observation"), ("reward", "reward")):
        grad[key] = np.array(getattr(gradient, name)[index])
    for name in ("state", "next_state"):
        grad[name] = np.array(getattr(gradient, name)[index])
    return grad


def _check_linear(pull: Any, jacobian: np.ndarray, n: int, n_envs: int, index: int, dtype: th.dtype) -> None:
    """:raises GradientChannelError: if ``pull`` of some cotangents is not the same sum of its rows"""
    outputs = len(jacobian)
    bar = th.from_numpy(np.random.default_rng(0).normal(size=(n_envs, outputs))).to(dtype)
    cut = bar.clone()
    cut[:, :n] = 0.0
    tolerance = (1e-9 if dtype == th.float64 else 1e-4) * np.abs(jacobian).max(initial=0.0) * outputs
    for given, with_state, what in (
        (bar, True, "of all outputs together is not the sum of those of each"),
        (cut, False, "with None for the next state's cotangent is not that with zeros"),
    ):
        found, again = pull(given, with_state)[index], pull(given, with_state)[index]
        expected = given[index].numpy() @ jacobian
        if np.isfinite(expected).all() and not (np.abs(found - expected) <= tolerance).all():
            worst = int(np.abs(found - expected).argmax())
            raise GradientChannelError(f"vjp {what}: {found[worst]:.6g}, and {expected[worst]:.6g} was expected.")
        if not np.array_equal(found, again, equal_nan=True):
            raise GradientChannelError("vjp, asked again, gives another answer: it must leave the derivative as it was.")


def _check_silence(env: Any) -> None:
    """:raises GradientChannelError: if a gradient is there after a reset"""
    if hasattr(env, "set_differentiable"):
        env.set_differentiable(True)
    env.reset(seed=0)
    space = env.single_action_space
    env.step(np.broadcast_to(np.clip(np.zeros_like(space.low), space.low, space.high), (env.num_envs, *space.shape)).copy())
    env.reset(seed=0)
    if env.step_gradient is not None:
        raise GradientChannelError(f"{type(env).__name__}.step_gradient must be None after reset(), before the next step.")


def _sum(one: GradientReport, other: GradientReport) -> GradientReport:
    worse = other if other.error >= one.error else one
    return GradientReport(
        one.transitions + other.transitions,
        one.entries + other.entries,
        worse.worst,
        worse.error,
        one.unjudged + other.unjudged,
        one.unjudged_example if one.unjudged else other.unjudged_example,
    )
