"""The batched side of the channel: what a vector environment offers that hands over a step gradient, and whether it does."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from sb3_gippo.rollout.step_gradient import GradientChannelError, StepGradient, states_of

FLOATS = ("float32", "float64")


class DifferentiableVectorEnv(Protocol):
    """
    A ``gymnasium.vector.VectorEnv`` of N environments whose last step can be differentiated.

    - ``metadata["autoreset_mode"]`` is ``AutoresetMode.SAME_STEP``: the step that ends an episode returns the first
      observation of the next one, and ``infos["final_obs"]`` (N,) the last one of those that ended.
    - ``single_observation_space`` and ``single_action_space`` are Boxes.
    - ``step`` returns numpy arrays of its own: observations (N, ...), rewards (N,) of floats, terminated and truncated (N,) of
      bools.
    - ``set_differentiable(bool)`` may be missing where gradients are always there. With and without, the numbers are the same.
    - ``get_state() -> (N, n)`` and ``set_state(x)`` are what ``check_differentiable_vec_env`` needs, and only that.
    - ``stagger`` and ``max_episode_steps`` may be there: with the first, episodes truncated before the second are not
      reported.
    """

    num_envs: int
    metadata: dict[str, Any]
    single_observation_space: Any
    single_action_space: Any

    @property
    def step_gradient(self) -> StepGradient | None:
        """:return: the derivative of the last step, before any reset; ``None`` without gradients, and after ``reset``"""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """:return: observations (N, ...), infos"""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        :param actions: (N, ...)
        :return: observations (N, ...), rewards (N,), terminated (N,), truncated (N,), infos
        """

    def close(self) -> None: ...


def check_batched_env(env: Any) -> None:
    """
    What can be seen before the first step.

    :param env: what ought to be a :class:`DifferentiableVectorEnv`
    :raises ValueError: if it is none, in a sentence that names the cure
    """
    name = type(env).__name__
    for attribute in ("num_envs", "metadata", "single_observation_space", "single_action_space", "reset", "step"):
        if not hasattr(env, attribute):
            raise ValueError(
                f"{name} has no {attribute}: a batched environment is a gymnasium.vector.VectorEnv that offers step_gradient."
            )
    mode = env.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.SAME_STEP.value):
        raise ValueError(
            f"{name} has the autoreset mode {getattr(mode, 'name', mode)}: gradients need one whose step that ends an episode "
            'resets it and hands out infos["final_obs"], with metadata["autoreset_mode"] = AutoresetMode.SAME_STEP.'
        )
    for what, space in (("observation", env.single_observation_space), ("action", env.single_action_space)):
        if not isinstance(space, spaces.Box):
            raise ValueError(f"The single {what} space of {name} is {space}: a gradient needs a Box.")
    if not hasattr(env, "step_gradient"):
        raise ValueError(
            f"{name} offers no step_gradient, the derivative of its last step (`None` without gradients): "
            "see docs/simulators.md. Without it, SB3's own VecEnvs are what it needs."
        )


class BatchedContract:
    """
    Looks once at what a batched environment returns, at its first reset, first step, first ending and first gradient: what
    has a wrong shape or type often broadcasts, and then surfaces far away.

    :param env: passed :func:`check_batched_env`
    """

    def __init__(self, env: DifferentiableVectorEnv):
        self.name = type(env).__name__
        self.n = env.num_envs
        self.observation_shape = (self.n, *env.single_observation_space.shape)
        self.observation_size = int(np.prod(env.single_observation_space.shape))
        self.action_size = int(np.prod(env.single_action_space.shape))
        self.seen: set[str] = set()

    def check_reset(self, outcome: Any) -> None:
        """
        :param outcome: what ``reset`` returned
        :raises ValueError: if it is not (observations, infos)
        """
        if self._first("reset"):
            if not isinstance(outcome, tuple) or len(outcome) != 2:
                self._refuse("reset", "", outcome, "(observations, infos)")
            self._expect("reset", " as observations", outcome[0], self.observation_shape, "fiub")

    def check_step(self, outcome: Any) -> None:
        """
        :param outcome: what ``step`` returned
        :raises ValueError: if it is not (observations, rewards, terminated, truncated, infos)
        """
        if self._first("step"):
            if not isinstance(outcome, tuple) or len(outcome) != 5:
                self._refuse("step", "", outcome, "(observations, rewards, terminated, truncated, infos)")
            self._expect("step", " as observations", outcome[0], self.observation_shape, "fiub")
            self._expect("step", " as rewards", outcome[1], (self.n,), "f")
            self._expect("step", " as terminated", outcome[2], (self.n,), "b")
            self._expect("step", " as truncated", outcome[3], (self.n,), "b")
        done = outcome[2] | outcome[3]
        if "end" not in self.seen and done.any():
            self.seen.add("end")
            final = outcome[4].get("final_obs") if isinstance(outcome[4], dict) else None
            if final is None or len(final) != self.n:
                raise ValueError(
                    f'{self.name}.step has ended an episode without infos["final_obs"], of length {self.n}, the observations '
                    "before the reset, which the gradient belongs to."
                )
            index = int(np.argmax(done))
            self._expect("step", f' as infos["final_obs"][{index}]', final[index], self.observation_shape[1:], "fiub")

    def check_gradient(self, gradient: StepGradient) -> None:
        """
        :param gradient: of the last step
        :raises GradientChannelError: if it is not of the shapes and types of a :class:`StepGradient`
        """
        if not self._first("gradient"):
            return
        for name in ("state_size", "action", "observation", "reward", "vjp"):
            if not hasattr(gradient, name):
                raise GradientChannelError(
                    f"The step_gradient of {self.name} ({type(gradient).__name__}) has no {name}: see sb3_gippo.StepGradient."
                )
        size = gradient.state_size
        if not isinstance(size, (int, np.integer)) or size < 0:
            raise GradientChannelError(f"{self.name}.step_gradient.state_size is {size!r}; expected was an int, 0 or more.")
        shapes = {
            "action": (self.n, self.action_size),
            "observation": (self.n, self.observation_size),
            "reward": (self.n,),
        }
        if states_of(gradient) is not None:
            shapes |= {"state": (self.n, size), "next_state": (self.n, size)}
        for name, shape in shapes.items():
            self._expect("step_gradient", f" as {name}", getattr(gradient, name), shape, "f" if "state" in name else "fiub")
        zeros = th.zeros(self.n, self.observation_size), th.zeros(self.n)
        pulled: Any = gradient.vjp(None, *zeros)
        if not isinstance(pulled, tuple) or len(pulled) != 2:
            self._refuse("step_gradient.vjp", "", pulled, "(cotangents of the state, cotangents of the action)")
        for name, bar, width in zip(("state", "action"), pulled, (size, self.action_size)):
            if not isinstance(bar, th.Tensor) or bar.shape != (self.n, width) or bar.dtype != th.float32:
                self._refuse(
                    "step_gradient.vjp",
                    f" as cotangents of the {name}",
                    bar,
                    f"a tensor {(self.n, width)} of float32, the type of the cotangents it was given",
                )

    def _first(self, what: str) -> bool:
        first = what not in self.seen
        self.seen.add(what)
        return first

    def _expect(self, function: str, role: str, found: Any, shape: tuple[int, ...], kinds: str) -> None:
        if not isinstance(found, (np.ndarray, np.generic)) or found.shape != shape or found.dtype.kind not in kinds:
            words = {"f": "floats", "b": "bools"}.get(kinds, "numbers")
            self._refuse(function, role, found, f"a numpy array {shape} of {words}")
        if kinds == "f" and str(found.dtype) not in FLOATS:
            self._refuse(function, role, found, f"a numpy array {shape} of float32 or float64")

    def _refuse(self, function: str, role: str, found: Any, expected: str) -> NoReturn:
        given = f"an object of type {type(found).__name__}"
        if isinstance(found, (np.ndarray, np.generic)):
            given = f"a numpy array {found.shape} of {found.dtype}"
        elif isinstance(found, th.Tensor):
            given = f"a tensor {tuple(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
        raise GradientChannelError(f"{self.name}.{function} has returned {given}{role}; expected was {expected}.")
