"""A JaxEnv as a batched Gymnasium environment whose step gradient is JAX's."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from gippo_envs.episodes import Episodes, final_infos
from sb3_gippo.jax.compiled import X64, compiled, in_sentences, pick
from sb3_gippo.jax.env import JaxEnv

REMEMBERED = 256
"""of how many states that were read the rest is kept, the last ones"""


class JaxBatchedEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """
    ``num_envs`` environments of a :class:`JaxEnv`, stepped together by one compiled function; they reset in the step that ends
    their episode. Every environment has a stream of random keys of its own.

    The gradient of a step is computed when it is asked for, by a second compiled function that makes the step again: what is
    kept per step is its state, action and key. Where a step is a loop of substeps, ``jax.checkpoint`` around one substep lets
    it keep less, and compile faster.

    :param env: the functions
    :param num_envs: number of environments, N
    :param max_episode_steps: time limit; ``None`` for none
    :param stagger: as in :class:`gippo_envs.BatchedEnv`
    :raises ValueError: if the functions do not fit together, the spaces or JAX's settings
    """

    def __init__(self, env: JaxEnv, num_envs: int = 1, max_episode_steps: int | None = None, stagger: bool = False):
        for name, space in (("observation", env.observation_space), ("action", env.action_space)):
            if not isinstance(space, spaces.Box):
                raise ValueError(f"The {name} space is {space}: a gradient needs a Box.")
            if space.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
                raise ValueError(f"The {name} space is float64, while JAX computes in float32: {X64}, or a space of float32.")
        self.jax_env = env
        self._episodes = Episodes(num_envs, max_episode_steps, stagger)
        self.num_envs = num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self.metadata = {"render_modes": [], "render_fps": 30, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.differentiable = False
        self.step_gradient: JaxStepGradient | None = None
        """the derivative of the last step; ``None`` where it was made without, and after ``reset`` and ``set_state``"""
        self._keys: jax.Array | None = None
        self._vector: jax.Array | None = None
        self._rest: list[jax.Array] = []
        self._memory: deque[tuple[np.ndarray, list[jax.Array], jax.Array]] = deque(maxlen=REMEMBERED)
        self._compile()

    @property
    def max_episode_steps(self) -> int | None:
        """:return: the time limit; ``None`` for none. It may be changed at any time, as by ``set_attr``."""
        return self._episodes.max_episode_steps

    @max_episode_steps.setter
    def max_episode_steps(self, steps: int | None) -> None:
        self._episodes.max_episode_steps = steps

    @property
    def stagger(self) -> bool:
        """:return: whether first episodes are cut short"""
        return self._episodes.stagger

    def _compile(self) -> None:
        """Make the functions that are compiled, and look at what they return."""
        self._compiled = compiled(self.jax_env)
        layout = self._compiled.layout
        self._action_dtype = np.result_type(layout.dtype if layout.size else np.float32, self.single_action_space.dtype)
        with in_sentences():
            shapes = jax.eval_shape(self._compiled.start, self._split_keys(0))
            action = jax.ShapeDtypeStruct(self.action_space.shape or (), self._action_dtype)
            jax.eval_shape(self._compiled.step, *shapes[:2], action, shapes[3])

    def _split_keys(self, seed: int) -> jax.Array:
        return jax.random.split(jax.random.key(seed), self.num_envs)

    def set_differentiable(self, differentiable: bool) -> None:
        """Switch the gradient channel on or off, at any time; off, the last step's gradient is given up."""
        self.differentiable = differentiable
        if not differentiable:
            self.step_gradient = None

    def get_state(self) -> np.ndarray:
        """:return: the differentiable states (N, n)"""
        state = np.array(self._require_state())
        assert self._keys is not None
        self._memory.append((state.copy(), self._rest, self._keys))
        return state

    def set_state(self, state: np.ndarray) -> None:
        """
        What the state carries beside its floats, and the random keys, become what they were in the nearest state that
        :meth:`get_state` has returned, environment by environment; where none was asked for, they stay.

        :param state: (N, n)
        :raises ValueError: for another shape
        """
        before = self._require_state()
        if np.shape(state) != before.shape:
            raise ValueError(f"The states have shape {before.shape}, not {np.shape(state)}.")
        self._vector, self.step_gradient = jnp.array(state, dtype=before.dtype), None
        if self._memory:
            known = np.stack([remembered for remembered, _, _ in self._memory])
            rows = np.square(known - np.asarray(state)).sum(axis=2).argmin(axis=0)
            kept = [(rest, keys) for _, rest, keys in self._memory]
            picked = [jax.tree.map(lambda leaf: leaf[i], kept[row]) for i, row in enumerate(rows)]  # noqa: B023
            self._rest, self._keys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *picked)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._keys is None:
            self._keys = self._split_keys(int(self.np_random.integers(2**31)))
        self._episodes.begin()
        self._vector, self._rest, observation, self._keys = self._compiled.start(self._keys)
        self.step_gradient = None
        return np.array(observation), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        :param actions: (N, ...)
        :return: observations after any reset, rewards, terminated, truncated, and infos as :class:`gippo_envs.BatchedEnv` has
            them
        """
        shape = self.action_space.shape or ()
        array = np.array(actions, dtype=self._action_dtype)
        if array.size != np.prod(shape):
            raise ValueError(f"Actions {shape} were expected, not an array {np.shape(actions)}.")
        inputs = self._require_state(), self._rest, jnp.asarray(array.reshape(shape)), self._keys
        (vector, seen, rewards), (rest, over, keys) = self._compiled.step(*inputs)
        # What is handed out may be written into; what JAX holds may not.
        observation, reward, terminated = np.array(seen), np.array(rewards), np.array(over)
        self.step_gradient = None
        if self.differentiable:
            self.step_gradient = JaxStepGradient(self._compiled.pull, inputs, vector, seen, rewards)
        truncated = self._episodes.step(terminated)
        done, infos = terminated | truncated, {}
        if done.any():
            infos = final_infos(observation, done)
            vector, rest, seen, keys = pick(done, self._compiled.start(keys), (vector, rest, seen, keys))
            observation = np.array(seen)
        self._vector, self._rest, self._keys = vector, rest, keys
        return observation, reward, terminated, truncated, infos

    def _require_state(self) -> jax.Array:
        if self._vector is None:
            raise gym.error.ResetNeeded("Call reset() before using the environment.")
        return self._vector

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go on as the original does, without its gradient."""
        keys = None if self._keys is None else jax.random.key_data(self._keys)
        state = {name: value for name, value in self.__dict__.items() if name != "_compiled"}
        return {**state, "step_gradient": None, "_keys": keys, "_memory": deque(maxlen=REMEMBERED)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._keys is not None:
            self._keys = jax.random.wrap_key_data(self._keys)
        self._compile()


@dataclass
class JaxStepGradient:
    """
    A step gradient by ``jax.vjp``, see :class:`sb3_gippo.rollout.step_gradient.StepGradient`. Between torch and JAX the
    numbers pass without a copy, where both compute in the same type on the same device.

    :param pull: (inputs, cotangents of the vector, the observation and the reward) to cotangents of vector and action
    :param inputs: vector (N, n), the other leaves of the state, action (N, ...), random keys (N,)
    :param next_vector: (N, n), before any reset
    :param seen: observation (N, ...), before any reset
    :param rewards: (N,)
    """

    pull: Any
    inputs: tuple[Any, ...]
    next_vector: jax.Array
    seen: jax.Array
    rewards: jax.Array

    @property
    def state_size(self) -> int:
        return self.next_vector.shape[1]

    @property
    def action(self) -> np.ndarray:
        """:return: (N, m)"""
        return np.asarray(self.inputs[2]).reshape(len(self.rewards), -1)

    @property
    def observation(self) -> np.ndarray:
        """:return: (N, k)"""
        return np.asarray(self.seen).reshape(len(self.rewards), -1)

    @property
    def reward(self) -> np.ndarray:
        """:return: (N,)"""
        return np.asarray(self.rewards)

    @property
    def state(self) -> np.ndarray:
        """:return: (N, n)"""
        return np.asarray(self.inputs[0])

    @property
    def next_state(self) -> np.ndarray:
        """:return: (N, n)"""
        return np.asarray(self.next_vector)

    def vjp(
        self, next_state_bar: th.Tensor | None, next_obs_bar: th.Tensor, reward_bar: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param next_state_bar: (N, n), of the next state; ``None`` for zero
        :param next_obs_bar: (N, k), of its observation
        :param reward_bar: (N,), of the reward
        :return: of the state (N, n) and of the action (N, m), in the type and on the device of ``next_obs_bar``
        """
        if next_state_bar is None:
            next_state_bar = next_obs_bar.new_zeros(self.next_vector.shape)
        pairs = ((next_state_bar, self.next_vector), (next_obs_bar, self.seen), (reward_bar, self.rewards))
        with in_sentences():
            pulled = self.pull(self.inputs, *(to_jax(bar, like) for bar, like in pairs))
        bars = [to_torch(bar).to(next_obs_bar) for bar in pulled]
        return bars[0], bars[1].reshape(len(self.rewards), -1)


def to_jax(tensor: th.Tensor, like: jax.Array) -> jax.Array:
    """
    :param tensor: of any type and device
    :param like: whose type and device are taken
    :return: the same numbers; the same memory where type and device are the same already and it is aligned
    """
    (device,) = like.devices()
    target = "cpu" if device.platform == "cpu" else f"cuda:{device.id}"
    return jnp.from_dlpack(tensor.detach().to(target, getattr(th, str(like.dtype))).contiguous())


def to_torch(array: jax.Array) -> th.Tensor:
    """:return: the same memory, of which JAX must have no further use: it takes its arrays to be constant"""
    return th.from_dlpack(array)
