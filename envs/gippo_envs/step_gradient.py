"""The derivative of a batched torch step, as the graph the step has left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch as th

if TYPE_CHECKING:
    from gippo_envs.core import Transition


@dataclass
class GraphStepGradient:
    """
    A step gradient as the one-step graph a batched torch environment kept: one backward per call, no Jacobians.

    :param inputs: the leaves, state (n_envs, n) and action (n_envs, m)
    :param outputs: what they gave, next state (n_envs, n), observation (n_envs, k) and reward (n_envs,)
    :param action: (n_envs, m)
    :param observation: (n_envs, k)
    :param reward: (n_envs,)
    :param state: (n_envs, n)
    :param next_state: (n_envs, n), before any reset
    """

    inputs: tuple[th.Tensor, th.Tensor]
    outputs: tuple[th.Tensor, th.Tensor, th.Tensor]
    action: np.ndarray
    observation: np.ndarray
    reward: np.ndarray
    state: np.ndarray | None = None
    next_state: np.ndarray | None = None

    @property
    def state_size(self) -> int:
        return self.inputs[0].shape[1]

    @classmethod
    def from_transition(cls, transition: Transition) -> GraphStepGradient:
        """:param transition: made with gradients on"""
        inputs = (transition.state, transition.action)
        outputs = (transition.next_state, transition.observation, transition.reward)
        names = ("action", "observation", "reward", "state", "next_state")
        return cls(inputs, outputs, *(getattr(transition, name).detach().cpu().numpy() for name in names))

    def vjp(
        self, next_state_bar: th.Tensor | None, next_obs_bar: th.Tensor, reward_bar: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Pull cotangents back through the step; it can be done again.

        :param next_state_bar: (n_envs, n), of the next state; ``None`` for zero
        :param next_obs_bar: (n_envs, k), of its observation
        :param reward_bar: (n_envs,), of the reward
        :return: of the state (n_envs, n) and of the action (n_envs, m), in the type and on the device of ``next_obs_bar``
        """
        outputs, bars = [], []
        for output, bar in zip(self.outputs, (next_state_bar, next_obs_bar, reward_bar)):
            if bar is not None and output.requires_grad:
                outputs.append(output)
                bars.append(bar.to(output))
        if not outputs:
            return tuple(next_obs_bar.new_zeros(leaf.shape) for leaf in self.inputs)  # type: ignore[return-value]
        state_bar, action_bar = th.autograd.grad(
            outputs, self.inputs, bars, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return state_bar.to(next_obs_bar), action_bar.to(next_obs_bar)
