"""A torch simulator that keeps its state to itself, as a batched environment with the graph of its last step."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from gippo_envs.core import Transition
from gippo_envs.episodes import Episodes, final_infos
from gippo_envs.step_gradient import GraphStepGradient


class TorchSimulator(Protocol):
    """
    N environments as an object with tensors inside, of a fixed N. ``reset`` and ``step`` are what simulators have;
    ``get_state`` and ``set_state`` are what is asked for in addition.
    """

    num_envs: int
    observation_space: spaces.Box
    """of one environment"""
    action_space: spaces.Box
    """of one environment"""

    def reset(self, generator: th.Generator) -> th.Tensor:
        """
        Fresh starts for all.

        :param generator: the only source of randomness
        :return: observations (N, ...)
        """

    def step(self, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param action: (N, ...)
        :return: observations (N, ...), rewards (N,), terminated (N,) of bools; the first two on the graph of state and action
        """

    def get_state(self) -> th.Tensor:
        """:return: all a step depends on, (N, n), on the graph of the last step"""

    def set_state(self, state: th.Tensor) -> None:
        """
        Go on from a state, without cutting its graph.

        :param state: (N, n)
        """


class TorchSimulatorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """
    A :class:`TorchSimulator` as a batched environment: the graph is cut before each step by ``set_state``, and kept for that
    step. Where episodes end, all environments of the simulator are reset, and those whose episodes go on put back.

    :param simulator: the simulator
    :param max_episode_steps: time limit; ``None`` for none
    :param stagger: as in :class:`gippo_envs.BatchedEnv`
    """

    def __init__(self, simulator: TorchSimulator, max_episode_steps: int | None = None, stagger: bool = False):
        self.simulator = simulator
        self.num_envs = simulator.num_envs
        self._episodes = Episodes(self.num_envs, max_episode_steps, stagger)
        self.single_observation_space, self.single_action_space = simulator.observation_space, simulator.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"render_modes": [], "render_fps": 30, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.differentiable = False
        self.step_gradient: GraphStepGradient | None = None
        """the derivative of the last step; ``None`` where it was made without, and after ``reset`` and ``set_state``"""
        self._generator: th.Generator | None = None
        self._checked: set[bool] = set()

    def __getstate__(self) -> dict[str, Any]:
        # A graph can neither be copied nor pickled.
        return {**self.__dict__, "step_gradient": None}

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

    def set_differentiable(self, differentiable: bool) -> None:
        """Switch the gradient channel on or off, at any time; off, the last step's graph is given up."""
        self.differentiable = differentiable
        if not differentiable:
            self.step_gradient = None

    def get_state(self) -> np.ndarray:
        """:return: the states (N, n)"""
        return _array(self.simulator.get_state())

    def set_state(self, state: np.ndarray) -> None:
        """:param state: (N, n)"""
        self.simulator.set_state(th.as_tensor(state).to(self.simulator.get_state().detach()).clone())
        self.step_gradient = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._generator is None:
            self._generator = th.Generator().manual_seed(int(self.np_random.integers(2**63 - 1)))
        self._episodes.begin()
        self.step_gradient = None
        with th.no_grad():
            observation: Any = self.simulator.reset(self._generator)
            if not isinstance(observation, th.Tensor):
                raise ValueError(
                    f"{type(self.simulator).__name__}.reset() has returned a {type(observation).__name__}; expected was a "
                    "tensor of observations (N, ...)."
                )
            return _array(observation), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        :param actions: (N, ...)
        :return: observations after any reset, rewards, terminated, truncated, and infos as :class:`gippo_envs.BatchedEnv` has
            them
        """
        simulator, on = self.simulator, self.differentiable
        state = simulator.get_state().detach().clone().requires_grad_(on)
        action = th.as_tensor(np.array(actions)).reshape(self.num_envs, -1).to(state.detach()).requires_grad_(on)
        if not self._checked:
            self._check_shape(state)
        with th.set_grad_enabled(on):
            # Clones, that a simulator may write into what it is given.
            simulator.set_state(state.clone())
            if on not in self._checked:
                self._check_state(state)
            outcome = simulator.step(action.clone().reshape(self.action_space.shape or ()))
            if on not in self._checked:
                self._check_outcome(outcome)
                self._checked.add(on)
            seen, rewards, over = outcome
            following = simulator.get_state().clone()
        if on:
            self._check_graph(following, seen, rewards)
            flat = seen.reshape(self.num_envs, -1)
            made = Transition(state, action, following, flat, rewards, over)
            self.step_gradient = GraphStepGradient.from_transition(made)
        else:
            self.step_gradient = None
        # Once more a clone: a reset may write in place as well.
        simulator.set_state(following.detach().clone())
        observation, terminated = _array(seen), _array(over)
        truncated = self._episodes.step(terminated)
        done, infos = terminated | truncated, {}
        if done.any():
            infos = final_infos(observation, done)
            observation[done] = self._restart(done, following.detach())
        return observation, _array(rewards), terminated, truncated, infos

    def _restart(self, done: np.ndarray, following: th.Tensor) -> np.ndarray:
        """Give the finished environments fresh starts; return their first observations."""
        assert self._generator is not None
        with th.no_grad():
            fresh = _array(self.simulator.reset(self._generator))
            where = th.from_numpy(done).to(following.device)[:, None]
            self.simulator.set_state(th.where(where, self.simulator.get_state(), following))
        return fresh[done]

    def _check_shape(self, state: th.Tensor) -> None:
        """:raises ValueError: if the state is not (N, n)"""
        if state.dim() != 2 or len(state) != self.num_envs or not state.is_floating_point():
            raise ValueError(
                f"{type(self.simulator).__name__}.get_state() has returned a tensor {tuple(state.shape)} of {state.dtype}; "
                f"expected was one of floats ({self.num_envs}, n)."
            )

    def _check_state(self, state: th.Tensor) -> None:
        """:raises ValueError: if the simulator is not in the state that was set"""
        name, found = type(self.simulator).__name__, self.simulator.get_state()
        if found.shape != state.shape or not th.equal(found.detach(), state.detach()):
            raise ValueError(f"{name}.get_state() is not what was given to set_state(): they must read and write the same.")
        if state.requires_grad and not found.requires_grad:
            raise ValueError(f"{name}.set_state() cuts the graph: keep the tensor it is given, without .detach() or .data.")

    def _check_outcome(self, outcome: Any) -> None:
        """:raises ValueError: if a step has not returned three tensors"""
        kinds = [type(each).__name__ for each in outcome] if isinstance(outcome, tuple) else type(outcome).__name__
        if kinds != ["Tensor"] * 3:
            given = f"({', '.join(kinds)})" if isinstance(kinds, list) else f"a {kinds}"
            raise ValueError(
                f"{type(self.simulator).__name__}.step() has returned {given}; expected were three tensors, (observations, "
                "rewards, terminated)."
            )

    def _check_graph(self, *outputs: th.Tensor) -> None:
        """:raises ValueError: if nothing a step returns hangs on a graph"""
        if not any(output.requires_grad for output in outputs):
            raise ValueError(
                f"Nothing that {type(self.simulator).__name__}.step() gives depends on state and action by a graph: compute "
                "in torch throughout, without .detach(), .item(), .numpy() or no_grad()."
            )


def _array(tensor: th.Tensor) -> np.ndarray:
    """The numbers, in memory of their own."""
    return tensor.detach().cpu().numpy().copy()
