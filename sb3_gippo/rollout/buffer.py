"""The rollout buffer that keeps, beside PPO's data, what the action gradients need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import RolloutBufferSamples

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

    Without gradients it is a plain ``RolloutBuffer``, in memory as well: the arrays below, of shape (n_steps, n_envs, ...),
    are empty until a window's first gradient.
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
    ended: np.ndarray
    """whether the episode ended with this step"""
    action_scale: np.ndarray
    observation_scale: np.ndarray
    reward_scale: np.ndarray
    minibatch: np.ndarray
    """the rows of the flattened window that :meth:`get` handed out last"""

    def reset(self) -> None:
        super().reset()
        self.step_gradients = []
        self._allocate(0)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without the step gradients, whose graphs can be neither copied nor pickled."""
        return {**vars(self), "step_gradients": []}

    def _allocate(self, n_steps: int) -> None:
        window = (n_steps, self.n_envs)
        obs_dim = int(np.prod(get_obs_shape(self.observation_space)))  # type: ignore[arg-type]
        self.noise = np.zeros((*window, self.action_dim), dtype=np.float32)
        self.action_gradients = np.zeros((*window, self.action_dim), dtype=np.float32)
        self.next_observations = np.zeros_like(self.observations[:n_steps])
        self.bootstrap = np.zeros(window, dtype=bool)
        self.ended = np.zeros(window, dtype=bool)
        self.action_scale = np.zeros((*window, self.action_dim))
        self.observation_scale = np.zeros((*window, obs_dim))
        self.reward_scale = np.zeros(window)

    @property
    def continues(self) -> np.ndarray:
        """:return: (n_steps, n_envs), whether the next step of the window belongs to the same episode"""
        continues = ~self.ended
        continues[-1:] = False
        return continues

    def add_step_gradient(
        self,
        step_gradient: StepGradient,
        next_observations: np.ndarray,
        bootstrap: np.ndarray,
        ended: np.ndarray,
        action_scale: np.ndarray,
        observation_scale: np.ndarray,
        reward_scale: np.ndarray,
    ) -> None:
        """
        Keep the gradient of the step that :meth:`add` is about to store. Shapes: (n_envs, ...), see the attributes.

        :raises GradientChannelError: if the state is of another size than in the step before
        """
        step = self.pos
        if step == 0:
            self._allocate(self.buffer_size)
        elif step_gradient.state_size != self.step_gradients[-1].state_size:
            raise GradientChannelError(
                f"The state behind the gradients changed its size from {self.step_gradients[-1].state_size} to "
                f"{step_gradient.state_size} in step {step} of the window: it must keep its size, over environments and over "
                "steps (where all derivatives by it vanish, send zeros)."
            )
        self.step_gradients.append(step_gradient)
        self.next_observations[step] = next_observations
        self.bootstrap[step] = bootstrap
        self.ended[step] = ended
        self.action_scale[step] = action_scale
        self.observation_scale[step] = observation_scale
        self.reward_scale[step] = reward_scale

    def gradient_batch(self) -> GradientBatch:
        """:return: the window as tensors, every array in the same order; to be called before :meth:`get` flattens it"""
        assert not self.generator_ready, "the window has been flattened already"
        names = ("observations", "actions", "noise", "action_gradients", "advantages", "returns")
        batch = GradientBatch(*(self.to_torch(self.swap_and_flatten(getattr(self, name))) for name in names))
        return replace(batch, advantages=batch.advantages.flatten(), returns=batch.returns.flatten())

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> RolloutBufferSamples:
        self.minibatch = batch_inds
        return super()._get_samples(batch_inds, env)
