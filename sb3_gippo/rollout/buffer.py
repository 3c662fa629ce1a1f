"""The rollout buffer that keeps, beside PPO's data, what the action gradients need."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_gippo.rollout.step_gradient import GradientChannelError, StepGradient


@dataclass
class GradientBatch:
    """A window with its time and environment axes merged, as tensors (n_steps * n_envs, ...); the last two (n,)."""

    observations: th.Tensor
    actions: th.Tensor
    noise: th.Tensor
    action_gradients: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


class GradientRolloutBuffer(RolloutBuffer):
    """
    :class:`RolloutBuffer` of SB3, with the noise of the actions (``actions`` = μ + σ · ``noise``, before clip or
    squash), the environment's step gradients, and after the rollout ``action_gradients``.

    Without gradients it is a plain ``RolloutBuffer``. Arrays have the shape (n_steps, n_envs, ...).
    """

    noise: np.ndarray
    """(n_steps, n_envs, action_dim), ε"""
    action_gradients: np.ndarray
    """(n_steps, n_envs, action_dim), dÂ_t/da_t by the policy's action, before any normalisation of advantages"""
    step_gradients: list[StepGradient]
    next_observations: np.ndarray
    """as the policy sees them; the terminal one where an episode ended"""
    bootstrap: np.ndarray
    """whether the value of the next observation counts: not after a termination"""
    continues: np.ndarray
    """whether the next step of the window belongs to the same episode"""
    action_scale: np.ndarray
    observation_scale: np.ndarray
    reward_scale: np.ndarray

    def reset(self) -> None:
        super().reset()
        window = (self.buffer_size, self.n_envs)
        obs_dim = int(np.prod(get_obs_shape(self.observation_space)))  # type: ignore[arg-type]
        self.step_gradients = []
        self.noise = np.zeros((*window, self.action_dim), dtype=self.action_space.dtype)
        self.action_gradients = np.zeros((*window, self.action_dim), dtype=self.action_space.dtype)
        self.next_observations = np.zeros_like(self.observations)
        self.bootstrap = np.zeros(window, dtype=bool)
        self.continues = np.zeros(window, dtype=bool)
        self.action_scale = np.zeros((*window, self.action_dim))
        self.observation_scale = np.zeros((*window, obs_dim))
        self.reward_scale = np.zeros(window)

    def add_step_gradient(
        self,
        step_gradient: StepGradient,
        next_observations: np.ndarray,
        bootstrap: np.ndarray,
        continues: np.ndarray,
        action_scale: np.ndarray,
        observation_scale: np.ndarray,
        reward_scale: np.ndarray,
    ) -> None:
        """
        Keep the gradient of the step that :meth:`add` is about to store. Shapes: (n_envs, ...), see the attributes.

        :raises GradientChannelError: if the state is of another size than in the step before
        """
        step = self.pos
        if step > 0 and step_gradient.state_size != self.step_gradients[-1].state_size:
            raise GradientChannelError(
                f"The state behind the gradients changed its size from {self.step_gradients[-1].state_size} to "
                f"{step_gradient.state_size} in step {step} of the window: it must keep its size, over environments and over "
                "steps (where all derivatives by it vanish, send zeros)."
            )
        self.step_gradients.append(step_gradient)
        self.next_observations[step] = next_observations
        self.bootstrap[step] = bootstrap
        self.continues[step] = continues if step < self.buffer_size - 1 else False
        self.action_scale[step] = action_scale
        self.observation_scale[step] = observation_scale
        self.reward_scale[step] = reward_scale

    def gradient_batch(self) -> GradientBatch:
        """:return: the window as tensors, every array in the same order; to be called before :meth:`get` flattens it"""
        assert not self.generator_ready, "the window has been flattened already"
        names = ("observations", "actions", "noise", "action_gradients", "advantages", "returns")
        batch = GradientBatch(*(self.to_torch(self.swap_and_flatten(getattr(self, name))) for name in names))
        return replace(batch, advantages=batch.advantages.flatten(), returns=batch.returns.flatten())
