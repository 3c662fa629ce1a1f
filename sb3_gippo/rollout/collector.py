"""The tap: a callback in front of the user's that catches each step's gradient while SB3's loop runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_gippo.rollout.buffer import GradientRolloutBuffer
from sb3_gippo.rollout.chain_rule import action_derivative, observation_derivative, reward_derivative
from sb3_gippo.rollout.step_gradient import DenseStepGradient, GradientChannelError, StepGradient, offered_step_gradient


class GradientCollector(BaseCallback):
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
        normalize = unwrap_vec_normalize(env)
        dones, rewards = self.locals["dones"], self.locals["rewards"]
        observations = self.locals["new_obs"].copy()
        bootstrap = ~dones
        for index in np.flatnonzero(dones):
            observations[index] = infos[index]["terminal_observation"]
            bootstrap[index] = infos[index].get("TimeLimit.truncated", False)
        check_finite(rewards, self.locals["new_obs"], observations, bootstrap, normalize)
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
        seen = observations.reshape(n_envs, -1)
        if step_gradient is None:
            step_gradient = DenseStepGradient.from_infos(infos, buffer.action_dim, seen.shape[1])
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


REMEDIES = {
    "action": (
        "RescaleAction, ClipAction, a repeated or delayed action",
        "leave actions to the policy, which clips them to the action space or squashes them (squash_actions=True)",
    ),
    "obs": ("TransformObservation, NormalizeObservation, VecFrameStack", "use VecNormalize for observations"),
    "reward": ("TransformReward, NormalizeReward, skipped frames", "use VecNormalize for rewards"),
}
"""by what was changed: wrappers that do so, and what GIPPO can follow"""


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
    expected_obs, expected_rewards, rounding = step_gradient.observation, step_gradient.reward, 0.0
    if normalize is not None and expected_obs.shape == observations.shape:
        space = normalize.observation_space
        expected_obs = expected_obs.reshape(-1, *space.shape).astype(space.dtype)  # type: ignore[misc]
        expected_obs = normalize.normalize_obs(expected_obs).reshape(observations.shape)  # type: ignore[union-attr]
        expected_rewards = normalize.normalize_reward(expected_rewards)
        # The mean that is taken off may be much larger than what is left.
        rounding = 1e-5
    pairs = (
        ("action", step_gradient.action, actions, "sent to it", 0.0),
        ("obs", expected_obs, observations, "seen by the policy", rounding),
        ("reward", expected_rewards, rewards, "seen by the algorithm", 0.0),
    )
    for name, taken_at, real, where, atol in pairs:
        if np.array_equal(taken_at, real):
            continue
        if taken_at.shape == real.shape:
            close = np.isclose(taken_at, real, rtol=1e-4, atol=atol, equal_nan=True)
            if close.all():
                continue
            index = int(np.argwhere(~close)[0][0])
        else:
            index = 0
        wrappers, remedy = REMEDIES[name]
        raise GradientChannelError(
            f"The gradient of environment {index} was taken at another {name} ({_short(taken_at[index])}) than the one "
            f"{where} ({_short(real[index])}). A wrapper that changes it in between (such as {wrappers}) cannot be followed: "
            f"{remedy}, or move the change into the environment. If no wrapper does, the environment gives a wrong {name}."
        )


def check_finite(
    rewards: np.ndarray,
    observations: np.ndarray,
    before_reset: np.ndarray,
    bootstrap: np.ndarray,
    normalize: VecNormalize | None,
) -> None:
    """
    Stop before numbers that are not finite get into returns and parameters. After a termination the last observation is used
    by nothing and may be anything.

    :param rewards: (n_envs,), seen by the algorithm
    :param observations: (n_envs, ...), seen by the policy
    :param before_reset: (n_envs, ...), the same, but the terminal one where an episode ended
    :param bootstrap: (n_envs,) bools, where the value of the latter counts
    :param normalize: the stack's VecNormalize, whose statistics spread one environment's numbers over all
    :raises ValueError: naming the environment
    """
    everywhere = np.ones_like(bootstrap)
    checks = [
        ("reward", rewards, everywhere),
        ("observation", observations, everywhere),
        ("terminal observation", before_reset, bootstrap),
    ]
    if normalize is not None:
        originals: Any = normalize.old_reward, normalize.old_obs
        checks = [("reward", originals[0], everywhere), ("observation", originals[1], everywhere), *checks]
    for name, values, used in checks:
        if np.isfinite(values).all():
            continue
        broken = used & ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if broken.any():
            index = int(np.argmax(broken))
            raise ValueError(
                f"Environment {index} returned a {name} that is not finite ({_short(values[index])}), which no training "
                "survives. Let it end the episode (terminated=True) with finite numbers before its simulation breaks down."
            )


def check_advantages(advantages: np.ndarray) -> None:
    """
    Stop before advantages that are not finite, although rewards and observations were, get into parameters.

    :param advantages: (n_steps, n_envs)
    :raises ValueError: naming the environment
    """
    finite = np.isfinite(advantages).all(axis=0)
    if not finite.all():
        raise ValueError(
            f"The advantages of environment {int(np.argmin(finite))} are not finite: its rewards are beyond what float32 adds "
            "up. Scale them (VecNormalize does), or let the episode end (terminated=True) before its simulation breaks down."
        )


def _short(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values), precision=4, threshold=6)
