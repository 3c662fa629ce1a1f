"""The tap: a callback in front of the user's that catches each step's gradient while SB3's loop runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_gippo.common.buffers import GradientRolloutBuffer
from sb3_gippo.common.gradients import DenseStepGradient, GradientChannelError, StepGradient, offered_step_gradient
from sb3_gippo.common.transforms import action_derivative, observation_derivative, reward_derivative


class GradientTap(BaseCallback):
    """
    Called right after each ``env.step`` with the loop's locals, it files the step gradient, the terminal observations and the
    normalisation scales of that very step in the rollout buffer. If the first step has no gradient it does nothing.

    :param policy: the policy that acts
    :param rollout_buffer: where the gradients go
    :raises GradientChannelError: if a gradient does not fit the transition it came with
    """

    def __init__(self, policy: ActorCriticPolicy, rollout_buffer: GradientRolloutBuffer):
        super().__init__()
        self.policy = policy
        self.rollout_buffer = rollout_buffer
        self.has_channel: bool | None = None
        """whether the environments offer gradients; ``None`` before the first step"""

    def on_step(self) -> bool:
        return self._on_step()

    def _on_step(self) -> bool:
        env: VecEnv = self.locals["env"]
        infos: list[dict[str, Any]] = self.locals["infos"]
        n_envs, buffer = env.num_envs, self.rollout_buffer
        step_gradient = offered_step_gradient(env)
        offered = step_gradient is not None or any("grad" in info for info in infos)
        if self.has_channel is None:
            self.has_channel = offered
        if not self.has_channel:
            if offered:
                raise GradientChannelError(
                    "The environments returned no gradients in the first steps of the window and do now: every environment "
                    "must offer the gradient channel in every step, or none (then GIPPO is PPO)."
                )
            return True
        observations = self.locals["new_obs"].copy()
        dones, rewards = self.locals["dones"], self.locals["rewards"]
        bootstrap = ~dones
        for index in np.flatnonzero(dones):
            observations[index] = infos[index]["terminal_observation"]
            bootstrap[index] = infos[index].get("TimeLimit.truncated", False)
        seen = observations.reshape(n_envs, -1)
        if step_gradient is None:
            step_gradient = DenseStepGradient.from_infos(infos, buffer.action_dim, seen.shape[1])
        normalize = unwrap_vec_normalize(env)
        check_integrity(step_gradient, self.locals["clipped_actions"].reshape(n_envs, -1), seen, rewards, normalize)
        buffer.add_step_gradient(
            step_gradient,
            observations,
            bootstrap,
            ~dones,
            action_derivative(self.policy, self.locals["actions"].reshape(n_envs, -1)),
            observation_derivative(normalize, seen),
            reward_derivative(normalize, rewards),
        )
        return True


def check_integrity(
    step_gradient: StepGradient,
    actions: np.ndarray,
    observations: np.ndarray,
    rewards: np.ndarray,
    normalize: VecNormalize | None,
) -> None:
    """
    Compare the values a gradient was taken at with what the algorithm sent and saw.

    :param step_gradient: the gradient
    :param actions: (n_envs, m), sent
    :param observations: (n_envs, k), seen by the policy
    :param rewards: (n_envs,), seen by the algorithm
    :param normalize: the stack's VecNormalize, whose effect is known
    :raises GradientChannelError: at the first difference beyond rounding to float32
    """
    expected_obs, expected_rewards = step_gradient.observation, step_gradient.reward
    for name, taken_at, real in (("action", step_gradient.action, actions), ("obs", expected_obs, observations)):
        if taken_at.shape != real.shape:
            raise GradientChannelError(
                f"The gradient was taken at an {name} of {taken_at.shape[1]} numbers where the policy has {real.shape[1]}: a "
                "wrapper in between changes its size (VecFrameStack, ...), which gradients cannot follow."
            )
    if normalize is not None:
        shape = (len(actions), *normalize.observation_space.shape)  # type: ignore[misc]
        expected_obs = normalize.normalize_obs(expected_obs.reshape(shape)).reshape(len(actions), -1)  # type: ignore[union-attr]
        expected_rewards = normalize.normalize_reward(expected_rewards)
    pairs = (
        ("action", step_gradient.action, actions, "sent to it"),
        ("obs", expected_obs, observations, "seen by the policy"),
        ("reward", expected_rewards, rewards, "seen by the algorithm"),
    )
    for name, taken_at, real, where in pairs:
        close = np.isclose(taken_at, real, rtol=1e-4, atol=1e-5, equal_nan=True)
        if not close.all():
            index = int(np.argwhere(~close)[0][0])
            raise GradientChannelError(
                f"The gradient of environment {index} was taken at another {name} ({_short(taken_at[index])}) than the one "
                f"{where} ({_short(real[index])}): a wrapper in between changes it. Move that change into the environment, or "
                "use what GIPPO can follow: VecNormalize for observations and rewards, the policy's own squash for actions."
            )


def _short(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values), precision=4, threshold=6)
