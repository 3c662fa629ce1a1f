"""What the tests compare with: a linear-quadratic environment, a float64 policy, and advantages by replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from gippo_envs.core import FunctionalEnv, SingleEnv
from sb3_gippo.common.policies import MlpPolicy


@dataclass
class LinearQuadratic(FunctionalEnv):
    """x' = A x + B a, r = -|x'|² - 0.1 |a|² + c·x·a; terminates when |x'_0| exceeds ``limit``."""

    limit: float = np.inf
    dtype: str = "float64"

    def __post_init__(self) -> None:
        self.state_size = 3
        self.observation_space = self.box(-np.inf, np.inf, 3)
        self.action_space = self.box(-2.0, 2.0, 2)
        rng = np.random.default_rng(0)
        self.a = th.tensor(np.eye(3) + 0.2 * rng.normal(size=(3, 3)), dtype=self.torch_dtype)
        self.b = th.tensor(0.5 * rng.normal(size=(3, 2)), dtype=self.torch_dtype)

    def initial_state(self, n: int, generator: th.Generator, options: dict[str, Any] | None = None) -> th.Tensor:
        return th.randn(n, 3, generator=generator, dtype=self.torch_dtype)

    def step(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        following = state @ self.a.T + action @ self.b.T
        reward = -following.square().sum(1) - 0.1 * action.square().sum(1) + 0.3 * state[:, 0] * action[:, 0]
        return following, reward, following[:, 0].abs() > self.limit

    def observe(self, state: th.Tensor) -> th.Tensor:
        return state * th.tensor([1.0, 2.0, 0.5], dtype=self.torch_dtype)


def linear_quadratic(max_episode_steps: int = 100, **kwargs: Any) -> gym.Env:
    return gym.wrappers.TimeLimit(SingleEnv(LinearQuadratic, **kwargs), max_episode_steps)


class Float64Policy(MlpPolicy):
    """Computes in float64; SB3 would cast observations to float32."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.double()

    def predict_values(self, obs: Any) -> th.Tensor:
        return self.value_net(self.mlp_extractor.forward_critic(obs.flatten(1).double()))

    def get_distribution(self, obs: Any) -> Any:
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(obs.flatten(1).double()))

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return obs.flatten(1).double()


class Recorder(BaseCallback):
    """Keeps what a replay needs: the states before every step, and VecNormalize's statistics after it."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[list[np.ndarray]] = []
        self.dones: list[np.ndarray] = []
        self.truncated: list[list[bool]] = []
        self.statistics: list[Any] = []
        self.actions: list[np.ndarray] = []

    def _states(self) -> list[np.ndarray]:
        states = self.training_env.env_method("get_state")
        # A batched environment answers for all at once.
        return list(states[0]) if states[0].ndim == 2 else states

    def _on_rollout_start(self) -> None:
        self.states = [self._states()]

    def _on_step(self) -> bool:
        self.states.append(self._states())
        self.dones.append(self.locals["dones"].copy())
        self.truncated.append([info.get("TimeLimit.truncated", False) for info in self.locals["infos"]])
        self.actions.append(self.locals["actions"].copy())
        normalize = self.model.get_vec_normalize_env()
        if normalize is not None:
            self.statistics.append(
                (
                    normalize.obs_rms.mean.copy() if normalize.norm_obs else 0.0,
                    np.sqrt(normalize.obs_rms.var + normalize.epsilon) if normalize.norm_obs else 1.0,
                    np.sqrt(normalize.ret_rms.var + normalize.epsilon) if normalize.norm_reward else 1.0,
                )
            )
        else:
            self.statistics.append((0.0, 1.0, 1.0))
        return True


def replayed_advantage(model: Any, core: FunctionalEnv, record: Recorder, env: int, start: int, action: np.ndarray) -> float:
    """
    Â at one step by its definition in float64: take ``action`` there, let the policy act with the recorded noise afterwards,
    add up (γλ)^l δ until the episode or the window ends.
    """
    policy, buffer = model.policy, model.rollout_buffer
    normalize = model.get_vec_normalize_env()
    clip_obs = normalize.clip_obs if normalize is not None and normalize.norm_obs else np.inf
    clip_reward = normalize.clip_reward if normalize is not None and normalize.norm_reward else np.inf
    low, high = (th.as_tensor(bound, dtype=th.float64) for bound in (core.action_space.low, core.action_space.high))
    with th.no_grad():
        observation = th.as_tensor(buffer.observations[start, env], dtype=th.float64)[None]
        state = th.as_tensor(record.states[start][env], dtype=th.float64)[None]
        chosen = th.as_tensor(action, dtype=th.float64)[None]
        total, weight = 0.0, 1.0
        for t in range(start, buffer.buffer_size):
            if t > start:
                distribution = policy.get_distribution(observation).distribution
                chosen = distribution.mean + distribution.stddev * th.as_tensor(buffer.noise[t, env])[None]
            if policy.squash_output:
                sent = low + 0.5 * (th.tanh(chosen) + 1.0) * (high - low)
            else:
                sent = chosen.clamp(low, high)
            state, reward, _ = core.step(state, sent)
            mean, std, reward_std = record.statistics[t]
            value = policy.predict_values(observation).item()
            observation = ((core.observe(state) - th.as_tensor(mean)) / th.as_tensor(std)).clamp(-clip_obs, clip_obs)
            following = policy.predict_values(observation).item()
            done, truncated = record.dones[t][env], record.truncated[t][env]
            shown = float(np.clip(reward.item() / reward_std, -clip_reward, clip_reward))
            total += weight * (shown + model.gamma * following * float(not done or truncated) - value)
            weight *= model.gamma * model.gae_lambda
            if done:
                break
    return total


def difference_gradients(model: Any, core: FunctionalEnv, record: Recorder, step: float = 1e-5) -> np.ndarray:
    """Central differences of :func:`replayed_advantage` at every action of the window, (n_steps, n_envs, action_dim)."""
    actions = np.stack(record.actions)
    gradients = np.zeros_like(actions, dtype=np.float64)
    for index in np.ndindex(*actions.shape):
        t, env, entry = index
        values = []
        for sign in (1, -1):
            action = actions[t, env].astype(np.float64).copy()
            action[entry] += sign * step
            values.append(replayed_advantage(model, core, record, env, t, action))
        gradients[index] = (values[0] - values[1]) / (2 * step)
    return gradients
