"""The functional core of a differentiable environment, and its two Gymnasium faces.

A problem is written once, as pure batched torch functions (:class:`FunctionalEnv`). From it come, without more code per
problem, a single Gymnasium environment that hands over dense Jacobians in ``info["grad"]`` (:class:`SingleEnv`) and a batched
Gymnasium vector environment that keeps the one-step graph (:class:`BatchedEnv`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from gippo_envs.contract import check_core, check_initial_state, check_step
from gippo_envs.episodes import Episodes, final_infos
from gippo_envs.step_gradient import GraphStepGradient

TORCH_DTYPES = {"float32": th.float32, "float64": th.float64}


class FunctionalEnv(ABC):
    """
    A differentiable problem as pure functions of torch tensors, batched over their first axis.

    Subclasses are dataclasses whose fields are the constants; they set the spaces in ``__post_init__``. The functions have
    no hidden state, write nothing in place and draw randomness from the given generator only.
    """

    state_size: int
    """n, the length of the differentiable state; 0 for a one-step problem"""
    observation_space: spaces.Box
    action_space: spaces.Box
    dtype: str
    """``"float32"`` or ``"float64"``: the type everything is computed in, the action included"""
    device: str = "cpu"
    """where everything is computed: states, actions and constants are there, as is the generator. A core that can be
    elsewhere than on the CPU has it as a field, like :attr:`dtype`."""
    render_fps: ClassVar[int] = 30

    @abstractmethod
    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        """
        Draw fresh starts.

        :param n: number of states
        :param generator: the only source of randomness, on :attr:`device`
        :param options: what ``reset(options=...)`` was given
        :return: states (n, state_size)
        """

    @abstractmethod
    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        One transition, differentiable with respect to both arguments.

        :param state: (n, state_size)
        :param action: (n, action_dim), inside the action space
        :return: next state (n, state_size), reward (n,), terminated (n,) of bools
        """

    @abstractmethod
    def observe(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: (n, state_size)
        :return: observations (n, observation_dim)
        """

    def render(self, state: th.Tensor, action: th.Tensor | None = None) -> np.ndarray:
        """
        :param state: (state_size,)
        :param action: (action_dim,), the one that led there, as it was sent; ``None`` where none has, as after a reset
        :return: an image (height, width, 3) of unsigned bytes
        :raises NotImplementedError: where the problem has no picture
        """
        raise NotImplementedError(f"{type(self).__name__} has no picture: make it without render_mode.")

    @property
    def torch_dtype(self) -> th.dtype:
        """
        :return: the torch type of :attr:`dtype`
        :raises ValueError: if :attr:`dtype` is another than those two
        """
        if self.dtype not in TORCH_DTYPES:
            raise ValueError(f"dtype must be one of {list(TORCH_DTYPES)}, not {self.dtype!r}.")
        return TORCH_DTYPES[self.dtype]

    @cached_property
    def torch_device(self) -> th.device:
        """
        :return: the torch device of :attr:`device`, its index included
        :raises ValueError: if there is no such device
        """
        try:
            return th.empty(0, device=self.device).device
        except Exception as error:  # every kind of device is missed by an exception of its own
            raise ValueError(f"device must be one that torch can use here, not {self.device!r}.") from error

    @property
    def action_dim(self) -> int:
        """:return: m, the length of the action"""
        return math.prod(self.action_space.shape)

    def box(self, low: float, high: float, size: int) -> spaces.Box:
        """
        :return: a Box (size,) of this problem's type
        :raises ValueError: if :attr:`dtype` is another than those two
        """
        self.torch_dtype  # noqa: B018 (raises)
        return spaces.Box(low, high, (size,), dtype=np.dtype(self.dtype).type)


class Transition(NamedTuple):
    """One batched step with its graph: the leaves it was computed from, and what came out, before any reset."""

    state: th.Tensor
    action: th.Tensor
    next_state: th.Tensor
    observation: th.Tensor
    reward: th.Tensor
    terminated: th.Tensor

    def detached(self) -> Transition:
        """:return: the same numbers without the graph"""
        return Transition(*(tensor.detach() for tensor in self))


def transition(core: FunctionalEnv, state: th.Tensor, action: th.Tensor, differentiable: bool) -> Transition:
    """
    Step the core, with state and action as the leaves of a new graph where ``differentiable``.

    :param state: (n, state_size)
    :param action: (n, action_dim)
    :return: the transition, whose numbers do not depend on ``differentiable``
    """
    state = state.detach().requires_grad_(differentiable)
    action = action.detach().requires_grad_(differentiable)
    with th.set_grad_enabled(differentiable):
        next_state, reward, terminated = core.step(state, action)
        return Transition(state, action, next_state, core.observe(next_state), reward, terminated)


def jacobians(core: FunctionalEnv, state: th.Tensor, action: th.Tensor) -> dict[str, np.ndarray]:
    """
    The step's derivatives at one state and action, in the form of ``info["grad"]``.

    All outputs are differentiated in one backward pass over as many copies of the inputs as there are outputs (copy i
    answers for output i), several times faster than ``torch.func.jacrev`` on steps of this size.

    :param state: (1, state_size)
    :param action: (1, action_dim)
    :return: arrays ``state_state`` (n, n), ``state_action`` (n, m), ``obs_state`` (k, n), ``obs_action`` (k, m),
        ``reward_state`` (n,), ``reward_action`` (m,)
    """
    n, k = core.state_size, int(np.prod(core.observation_space.shape))
    copies = n + k + 1
    step = transition(core, state.expand(copies, -1), action.expand(copies, -1), differentiable=True)
    outputs = th.cat([step.next_state, step.observation, step.reward[:, None]], dim=1)
    by_state, by_action = (
        rows.cpu().numpy()
        for rows in th.autograd.grad(
            outputs.diagonal().sum(), (step.state, step.action), allow_unused=True, materialize_grads=True
        )
    )
    return {
        "state_state": by_state[:n],
        "state_action": by_action[:n],
        "obs_state": by_state[n:-1],
        "obs_action": by_action[n:-1],
        "reward_state": by_state[-1],
        "reward_action": by_action[-1],
    }


def _build(core: str | Callable[..., FunctionalEnv], constants: dict[str, Any]) -> FunctionalEnv:
    creator: Any = load_env_creator(core) if isinstance(core, str) else core
    built: FunctionalEnv = creator(**constants)
    check_core(built)
    return built


def _check_render_mode(render_mode: str | None) -> None:
    if render_mode not in (None, "rgb_array"):
        raise ValueError(
            f'render_mode must be None or "rgb_array", not {render_mode!r}: for a window around one environment use '
            'gymnasium.make(..., render_mode="human").'
        )


def _generator(np_random: np.random.Generator, device: th.device) -> th.Generator:
    """A torch generator of the environment's own, seeded from Gymnasium's."""
    return th.Generator(device).manual_seed(int(np_random.integers(2**63 - 1)))


def _array(tensor: th.Tensor) -> np.ndarray:
    """The numbers, in memory of their own."""
    return tensor.detach().cpu().numpy().copy()


class SingleEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    One environment of a functional core, with the gradient channel.

    :param core: a :class:`FunctionalEnv` class, or where to import it from (``"module:Class"``)
    :param render_mode: ``None`` or ``"rgb_array"``; ``gymnasium.make(..., render_mode="human")`` opens a window around it, by
        Gymnasium's ``HumanRendering``, which needs pygame
    :param differentiable: whether ``step`` returns ``info["grad"]``; the other numbers are the same either way
    :param stagger: taken so that one set of keywords makes both faces; one environment has no phase to be out of
    :param constants: fields of the core
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium's form)

    def __init__(
        self,
        core: str | Callable[..., FunctionalEnv],
        render_mode: str | None = None,
        differentiable: bool = False,
        stagger: bool = False,
        **constants: Any,
    ):
        _check_render_mode(render_mode)
        self.core = _build(core, constants)
        self.observation_space = self.core.observation_space
        self.action_space = self.core.action_space
        self.metadata = {**self.metadata, "render_fps": self.core.render_fps}
        self.render_mode = render_mode
        self.differentiable = differentiable
        self._generator: th.Generator | None = None
        self._state: th.Tensor | None = None
        self._action: th.Tensor | None = None  # the one that led to the state
        self._reset_checked = self._step_checked = False

    def set_differentiable(self, differentiable: bool) -> None:
        """Switch the gradient channel on or off, at any time."""
        self.differentiable = differentiable

    def get_state(self) -> np.ndarray:
        """:return: the differentiable state (state_size,)"""
        return _array(self._require_state()[0])

    def set_state(self, state: np.ndarray) -> None:
        """
        :param state: (state_size,)
        :raises ValueError: for another shape
        """
        state = np.asarray(state)
        if state.shape != (self.core.state_size,):
            raise ValueError(f"The state has shape ({self.core.state_size},), not {state.shape}.")
        self._state, self._action = _as_state(state, self.core).reshape(1, -1), None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._generator is None:
            self._generator = _generator(self.np_random, self.core.torch_device)
        with th.no_grad():
            state = self.core.initial_state(1, self._generator, options)
            if not self._reset_checked:
                check_initial_state(self.core, 1, state)
                self._reset_checked = True
            self._state, self._action = state, None
            return _array(self.core.observe(state)[0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        state = self._require_state()
        sent = _as_action(action, self.core, 1)
        if not self._step_checked:
            check_step(self.core, state, sent)
            self._step_checked = True
        step = transition(self.core, state, sent, differentiable=False)
        self._state, self._action = step.next_state, sent
        observation, reward = _array(step.observation[0]), step.reward.item()
        info: dict[str, Any] = {}
        if self.differentiable:
            grad = jacobians(self.core, state, sent)
            grad.update(action=_array(sent[0]), obs=observation.copy(), reward=_array(step.reward[0]))
            grad.update(state=_array(state[0]), next_state=_array(step.next_state[0]))
            info["grad"] = grad
        return observation, reward, bool(step.terminated), False, info

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            gym.logger.warn('render() draws nothing without a render mode: make the environment with render_mode="rgb_array".')
            return None
        return self.core.render(self._require_state()[0], None if self._action is None else self._action[0])

    def _require_state(self) -> th.Tensor:
        if self._state is None:
            raise gym.error.ResetNeeded("Call reset() before using the environment.")
        return self._state


class BatchedEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """
    ``num_envs`` environments of a functional core, stepped together; they reset in the step that ends their episode.

    Switched on, the gradient channel is the graph of the last step itself: :attr:`transition`, not ``info["grad"]``. Copies
    and pickles go on as the original does, with a random stream of their own in the same place, but without that graph.

    :param core: a :class:`FunctionalEnv` class, or where to import it from (``"module:Class"``)
    :param num_envs: number of environments
    :param max_episode_steps: time limit; ``None`` for none
    :param render_mode: ``None`` or ``"rgb_array"``
    :param differentiable: whether :attr:`transition` carries a graph; the numbers are the same either way
    :param stagger: cut every environment's first episode that lasts, at evenly spread fractions of the time limit, so that the
        environments run out of phase and every window shows all parts of an episode
    :param constants: fields of the core
    :raises ValueError: without at least one environment, or for ``stagger`` without a time limit
    """

    def __init__(
        self,
        core: str | Callable[..., FunctionalEnv],
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        differentiable: bool = False,
        stagger: bool = False,
        **constants: Any,
    ):
        _check_render_mode(render_mode)
        self.core = _build(core, constants)
        self._episodes = Episodes(num_envs, max_episode_steps, stagger)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = self.core.observation_space
        self.single_action_space = self.core.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": self.core.render_fps,
            "autoreset_mode": AutoresetMode.SAME_STEP,
        }
        self.transition: Transition | None = None
        """the last step, before any reset; ``None`` after ``reset`` and ``set_state``"""
        self.differentiable = differentiable
        self._generator: th.Generator | None = None
        self._state: th.Tensor | None = None
        self._reset_checked = self._step_checked = False

    def __getstate__(self) -> dict[str, Any]:
        # A graph can neither be copied nor pickled.
        return {**self.__dict__, "transition": None if self.transition is None else self.transition.detached()}

    def set_differentiable(self, differentiable: bool) -> None:
        """Switch the gradient channel on or off, at any time; off, the last step's graph is given up."""
        self.differentiable = differentiable

    @property
    def differentiable(self) -> bool:
        """:return: whether :attr:`transition` carries a graph"""
        return self._differentiable

    @differentiable.setter
    def differentiable(self, differentiable: bool) -> None:
        self._differentiable = differentiable
        if not differentiable and self.transition is not None:
            self.transition = self.transition.detached()

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

    @property
    def step_gradient(self) -> GraphStepGradient | None:
        """:return: of the last step; ``None`` where it was made without gradients, and after ``reset`` and ``set_state``"""
        if self.transition is None or not self.transition.state.requires_grad:
            return None
        return GraphStepGradient.from_transition(self.transition)

    def get_state(self) -> np.ndarray:
        """:return: the differentiable states (num_envs, state_size)"""
        return _array(self._require_state())

    def set_state(self, state: np.ndarray) -> None:
        """
        :param state: (num_envs, state_size)
        :raises ValueError: for another shape
        """
        state = np.asarray(state)
        if state.shape != (self.num_envs, self.core.state_size):
            raise ValueError(f"The states have shape {(self.num_envs, self.core.state_size)}, not {state.shape}.")
        self._state, self.transition = _as_state(state, self.core), None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._generator is None:
            self._generator = _generator(self.np_random, self.core.torch_device)
        self._episodes.begin()
        with th.no_grad():
            state = self.core.initial_state(self.num_envs, self._generator, options)
            if not self._reset_checked:
                check_initial_state(self.core, self.num_envs, state)
                self._reset_checked = True
            self._state, self.transition = state, None
            return _array(self.core.observe(state)), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        :param actions: (num_envs, action_dim)
        :return: observations after any reset, rewards, terminated, truncated, and infos: where episodes ended, as Gymnasium's
            ``SyncVectorEnv`` has them, ``final_obs`` (an array of objects: the observation before the reset, or ``None``) and
            ``final_info`` (empty, as there is no info) with their masks ``_final_obs`` and ``_final_info``
        """
        state, sent = self._require_state(), _as_action(actions, self.core, self.num_envs)
        if not self._step_checked:
            check_step(self.core, state, sent)
            self._step_checked = True
        self.transition = step = transition(self.core, state, sent, self.differentiable)
        self._state = step.next_state.detach()
        terminated = _array(step.terminated)
        truncated = self._episodes.step(terminated)
        observation = _array(step.observation)
        infos: dict[str, Any] = {}
        done = terminated | truncated
        if done.any():
            infos = final_infos(observation, done)
            observation[done] = self._restart(done)
        return observation, _array(step.reward), terminated, truncated, infos

    def _restart(self, done: np.ndarray) -> np.ndarray:
        """Give the finished environments fresh starts; return their first observations."""
        assert self._state is not None and self._generator is not None
        with th.no_grad():
            fresh = self.core.initial_state(int(done.sum()), self._generator)
            self._state = self._state.index_put((th.from_numpy(done).to(self.core.torch_device),), fresh)
            return _array(self.core.observe(fresh))

    def render(self) -> tuple[np.ndarray, ...] | None:
        """
        :return: a picture of every environment, where the last step led to: of the end of its episode, if that was the last
        """
        if self.render_mode is None:
            gym.logger.warn('render() draws nothing without a render mode: make the environment with render_mode="rgb_array".')
            return None
        if self.transition is None:
            return tuple(self.core.render(state) for state in self._require_state())
        shown = self.transition.detached()
        return tuple(self.core.render(state, action) for state, action in zip(shown.next_state, shown.action))

    def _require_state(self) -> th.Tensor:
        if self._state is None:
            raise gym.error.ResetNeeded("Call reset() before using the environment.")
        return self._state


def _as_action(action: Any, core: FunctionalEnv, n: int) -> th.Tensor:
    """The actions as a tensor (n, action_dim) of the core's type and device, never sharing the caller's memory."""
    array = np.asarray(action)
    if array.size != n * core.action_dim:
        raise ValueError(f"{n} action(s) of shape {core.action_space.shape} were expected, not an array {array.shape}.")
    return th.from_numpy(np.array(array, dtype=core.dtype).reshape(n, core.action_dim)).to(core.torch_device)


def _as_state(state: np.ndarray, core: FunctionalEnv) -> th.Tensor:
    """The state as a tensor of the core's type and device, never sharing the caller's memory."""
    return th.from_numpy(np.array(state, dtype=core.dtype)).to(core.torch_device)
