"""The collector: a callback in front of the user's that catches each step's gradient while SB3's loop runs, and checks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_gippo.rollout.buffer import GradientRolloutBuffer
from sb3_gippo.rollout.chain_rule import action_derivative, observation_derivative, reward_derivative
from sb3_gippo.rollout.states import MOVE_IN, TellStates
from sb3_gippo.rollout.step_gradient import (
    DenseStepGradient,
    GradientChannelError,
    StepGradient,
    offered_step_gradient,
    states_of,
)

Left = tuple[np.ndarray, np.ndarray]
ROUNDINGS = 4.0
"""by how many roundings of its row's largest number a value may differ from another that ought to be the same"""


class GradientCollector(BaseCallback):
    """
    Called right after each ``env.step`` with the loop's locals, it files the step gradient, the terminal observations and the
    normalisation scales of that very step in the rollout buffer. If the first step has no gradient it does nothing.

    :param policy: the policy that acts
    :param rollout_buffer: where the gradients go
    :param told: what :func:`~sb3_gippo.rollout.states.states_told` put around the environments
    :param left: how the window before ended, see :attr:`left`
    :param finish: called at the end of a window with gradients, before the user's callbacks may change the policy
    :raises GradientChannelError: if a gradient does not fit the transition it came with
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        rollout_buffer: GradientRolloutBuffer,
        told: Sequence[TellStates],
        left: Left | None,
        finish: Callable[[], None],
    ):
        super().__init__()
        self.policy = policy
        self.rollout_buffer = rollout_buffer
        self.told = told
        self.left = left
        """the states in which the last step ended (n_envs, n), where the episode goes on (n_envs,); ``None`` if not known"""
        self.finish = finish
        self.rewards: list[np.ndarray] = []
        """as the environments gave them"""
        self.has_channel: bool | None = None
        """whether the environments offer gradients; ``None`` before the first step"""

    def on_step(self) -> bool:
        return self._on_step()

    def _on_step(self) -> bool:
        env: VecEnv = self.locals["env"]
        infos: list[dict[str, Any]] = self.locals["infos"]
        step_gradient = offered_step_gradient(env)
        offered = step_gradient is not None or any("grad" in info for info in infos)
        if self.has_channel is None:
            self.has_channel = offered
        # Without a channel the rollout is PPO's, of environments and wrappers that may be anything: nothing else is looked at.
        if not self.has_channel:
            if offered:
                raise GradientChannelError(
                    "The environments returned no gradients in the first steps of the window and do now: every environment "
                    "must offer the gradient channel in every step, or none (then GIPPO is PPO)."
                )
            return True
        n_envs, buffer = env.num_envs, self.rollout_buffer
        normalize = unwrap_vec_normalize(env)
        if normalize is not None and normalize.norm_obs and buffer.observations.dtype.kind != "f":
            raise GradientChannelError(
                f"The rollout buffer rounds what VecNormalize makes of {buffer.observations.dtype} observations: gradients "
                "cannot follow. Let the environment's observation space be one of float32."
            )
        if normalize is not None and not isinstance(normalize.observation_space, type(self.policy.observation_space)):
            raise GradientChannelError(
                f"VecNormalize normalises {type(normalize.observation_space).__name__} observations before a wrapper takes "
                "them apart: gradients cannot follow. Put VecNormalize around that wrapper."
            )
        dones, rewards = self.locals["dones"], self.locals["rewards"]
        observations = self.locals["new_obs"].copy()
        bootstrap = ~dones
        for index in np.flatnonzero(dones):
            if "terminal_observation" not in infos[index]:
                raise GradientChannelError(
                    f'The VecEnv ended the episode of environment {index} without infos[{index}]["terminal_observation"], the '
                    "observation before the reset, which the gradient belongs to."
                )
            observations[index] = infos[index]["terminal_observation"]
            bootstrap[index] = infos[index].get("TimeLimit.truncated", False)
        check_finite(rewards, self.locals["new_obs"], observations, bootstrap, normalize)
        seen = observations.reshape(n_envs, -1)
        if step_gradient is None:
            step_gradient = DenseStepGradient.from_infos(infos, buffer.action_dim, seen.shape[1])
        check_integrity(step_gradient, self.locals["clipped_actions"].reshape(n_envs, -1), seen, rewards, normalize)
        for environment in self.told:
            environment.check_one_step()
        states = states_of(step_gradient)
        if self.left is not None and states is not None:
            check_continuity(*self.left, states[0])
        self.left = None if states is None else (states[1].copy(), ~dones)
        self.rewards.append(rewards.copy())
        buffer.add_step_gradient(
            step_gradient,
            observations,
            bootstrap,
            dones,
            action_derivative(self.policy, self.locals["actions"].reshape(n_envs, -1)),
            observation_derivative(normalize, seen),
            reward_derivative(normalize, rewards),
        )
        return True

    def _on_rollout_end(self) -> None:
        if self.has_channel:
            check_rewards(self.rollout_buffer, np.stack(self.rewards))
            self.finish()


REMEDIES = {
    "action": (
        "RescaleAction, ClipAction, a repeated or delayed action",
        "leave actions to the policy, which clips them to the action space or squashes them (squash_actions=True)",
    ),
    "obs": ("TransformObservation, NormalizeObservation, VecFrameStack", "use VecNormalize for observations"),
    "reward": ("TransformReward, NormalizeReward, skipped frames", "use VecNormalize for rewards"),
}
"""by what was changed: wrappers that do so, and what GIPPO can follow"""


def rounding(*arrays: np.ndarray) -> np.ndarray:
    """
    How far numbers that ought to be the same may be apart: by the rounding of the coarsest type they passed through (float32
    at least, in which VecEnvs keep rewards), by the size of the row, nothing more.

    :param arrays: (n_envs, ...) each
    :return: (n_envs, 1)
    """
    types = [np.finfo(array.dtype) for array in arrays if array.dtype.kind == "f"]
    eps = max([float(np.finfo(np.float32).eps), *(float(kind.eps) for kind in types)])
    rows = [np.abs(array.reshape(len(array), -1).astype(np.float64)) for array in arrays]
    largest = np.max([np.max(row, axis=1, initial=0.0, where=np.isfinite(row)) for row in rows], axis=0)
    # What float32 has no digits for is 0 to it.
    return ROUNDINGS * eps * largest[:, None] + float(np.finfo(np.float32).tiny)


def _first_difference(one: np.ndarray, other: np.ndarray, tolerance: np.ndarray, rows: np.ndarray) -> int | None:
    """:return: the first of the ``rows`` (n_envs,) in which two arrays (n_envs, ...) differ by more than ``tolerance``"""
    if np.array_equal(one, other):
        return None
    if one.shape != other.shape:
        return 0
    one, other = (np.reshape(array, (len(array), -1)).astype(np.float64) for array in (one, other))
    with np.errstate(invalid="ignore"):  # infinite in both is the same
        close = (np.abs(one - other) <= tolerance) | (one == other) | (np.isnan(one) & np.isnan(other))
    broken = rows & ~close.all(axis=1)
    return int(np.argmax(broken)) if broken.any() else None


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
    :raises GradientChannelError: at the first difference beyond :func:`rounding`
    """
    obs, reward = step_gradient.observation, step_gradient.reward
    expected_obs, expected_rewards = obs, reward
    obs_slack: np.ndarray | float = 0.0
    reward_slack: np.ndarray | float = 0.0
    if normalize is not None and obs.shape == observations.shape:
        space: Any = normalize.observation_space
        expected_obs = normalize.normalize_obs(obs.reshape(-1, *space.shape).astype(space.dtype))  # type: ignore[assignment]
        expected_obs = expected_obs.reshape(observations.shape)
        expected_rewards = normalize.normalize_reward(reward)
        # The raw numbers are rounded before VecNormalize shifts and scales them: by the mean's digits as well.
        if normalize.norm_obs:
            mean = np.broadcast_to(normalize.obs_rms.mean.ravel(), obs.shape)  # type: ignore[attr-defined]
            deviation = np.sqrt(normalize.obs_rms.var.ravel() + normalize.epsilon)  # type: ignore[attr-defined]
            obs_slack = rounding(obs, mean) / deviation
        if normalize.norm_reward:
            reward_slack = rounding(reward) / np.sqrt(normalize.ret_rms.var + normalize.epsilon)
    pairs = (
        ("action", step_gradient.action, actions, "sent to it", 0.0),
        ("obs", expected_obs, observations, "seen by the policy", obs_slack),
        ("reward", expected_rewards, rewards, "seen by the algorithm", reward_slack),
    )
    everywhere = np.ones(len(rewards), dtype=bool)
    for name, taken_at, real, where, slack in pairs:
        if np.array_equal(taken_at, real):
            continue
        tolerance = slack + (rounding(taken_at, real) if taken_at.shape == real.shape else 0.0)
        index = _first_difference(taken_at, real, tolerance, everywhere)  # type: ignore[arg-type]
        if index is None:
            continue
        wrappers, remedy = REMEDIES[name]
        raise GradientChannelError(
            f"The gradient of environment {index} was taken at another {name} ({_short(taken_at[index])}) than the one "
            f"{where} ({_short(real[index])}). A wrapper that changes it in between (such as {wrappers}) cannot be followed: "
            f"{remedy}, or move the change into the environment. If no wrapper does, the environment gives a wrong {name}."
        )


def check_continuity(left: np.ndarray, goes_on: np.ndarray, found: np.ndarray) -> None:
    """
    Check that each step began in the state in which the one before ended.

    :param left: in which that ended (n_envs, n)
    :param goes_on: (n_envs,) bools, where the episode went on in between
    :param found: in which the next one began (n_envs, n)
    :raises GradientChannelError: at the first state that is another
    """
    if not goes_on.any() or left.shape != found.shape or np.array_equal(left, found):
        return
    index = _first_difference(left, found, rounding(left, found), goes_on)
    if index is not None:
        raise GradientChannelError(
            f"The gradient of environment {index} was taken from another state ({_short(found[index])}) than the one in which "
            f"the step before ended ({_short(left[index])}): something makes steps in between or changes the state (a wrapper "
            f"that repeats or skips steps, or resets a part). {MOVE_IN}"
        )


def check_rewards(buffer: GradientRolloutBuffer, rewards: np.ndarray) -> None:
    """
    Check that the window holds the rewards whose gradients it holds.

    :param buffer: with the values of truncated episodes' last observations in its rewards
    :param rewards: (n_steps, n_envs), of the environments
    :raises GradientChannelError: if something else changed them
    """
    changed = (buffer.rewards != rewards.astype(buffer.rewards.dtype)) & ~(buffer.bootstrap & buffer.ended)
    if changed.any():
        step, index = np.argwhere(changed)[0]
        raise GradientChannelError(
            f"The reward of environment {index} was changed after its step, from {rewards[step, index]:.4g} to "
            f"{buffer.rewards[step, index]:.4g}, by a callback: gradients cannot follow. Change it inside the environment."
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
