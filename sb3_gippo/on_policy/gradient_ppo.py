"""What the algorithms that use environment gradients share: PPO that fills its buffer with action gradients."""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.distributions import DiagGaussianDistribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv

from sb3_gippo.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_gippo.on_policy.actor import actor_parameters
from sb3_gippo.on_policy.critic import CriticMemory, fit_critic
from sb3_gippo.rollout.adjoint import action_gradients
from sb3_gippo.rollout.buffer import GradientBatch, GradientRolloutBuffer
from sb3_gippo.rollout.collector import GradientCollector, check_advantages
from sb3_gippo.rollout.workers import close_if_worker_died


def check_integer(name: str, value: object, smallest: int) -> None:
    """:raises AssertionError: with a sentence, if a hyper-parameter is no integer, or too small"""
    assert isinstance(value, (int, np.integer)) and value >= smallest, (
        f"`{name}` must be an integer of at least {smallest}, not {value!r}"
    )


SelfGradientPPO = TypeVar("SelfGradientPPO", bound="GradientPPO")


class GradientPPO(PPO):
    """
    PPO whose rollouts carry ``rollout_buffer.action_gradients`` where the environments offer gradients; else PPO itself.

    Subclasses set the hyper-parameters below and say by ``_wants_gradients`` whether gradients are to be asked for.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }

    rollout_buffer: RolloutBuffer
    max_action_grad_norm: float | None
    action_gradient_lambda: float | None
    critic_steps: int
    critic_windows: int
    critic_batch_size: int
    critic_learning_rate: float
    target_critic_tau: float | None
    critic_memory: CriticMemory | None = None
    target_critic: ActorCriticPolicy | None = None
    """the slow copy of the policy whose values the sweep uses; none without ``target_critic_tau``"""

    _has_gradients: bool = False
    """whether the rollout in the buffer has usable action gradients"""
    _gradients_unusable: bool = False
    """whether it has gradients, of which not one is finite"""
    _gradient_statistics: dict[str, float]
    """of the rollout in the buffer, by the key they are logged under"""
    _warned: bool = False

    def _wants_gradients(self) -> bool:
        raise NotImplementedError

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.vector.VectorEnv):
            raise TypeError(
                f"{type(env).__name__} is one of Gymnasium's vector environments, which SB3's algorithms do not take: "
                "make it by sb3_gippo.make_vec_env(id, n_envs)."
            )
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None and not isinstance(self.observation_space, spaces.Dict):
            self.rollout_buffer_class = GradientRolloutBuffer
        self._check_hyperparameters()
        super()._setup_model()
        if self.critic_memory is None or self.critic_memory.windows.maxlen != self.critic_windows:
            self.critic_memory = CriticMemory(self.critic_windows)
        if self.target_critic_tau is not None:
            self.target_critic = copy.deepcopy(self.policy)
        if self._unsupported() is None:
            self._setup_optimizers()

    def _check_hyperparameters(self) -> None:
        """:raises AssertionError: with a sentence, if one is out of range"""
        assert self.action_gradient_lambda is None or 0 <= self.action_gradient_lambda <= 1, (
            f"`action_gradient_lambda` must lie between 0 and 1 (`None`: `gae_lambda`), not {self.action_gradient_lambda}"
        )
        for name, smallest in (("critic_steps", 0), ("critic_windows", 1), ("critic_batch_size", 1)):
            check_integer(name, getattr(self, name), smallest)
        assert self.critic_learning_rate > 0, f"`critic_learning_rate` must be positive, not {self.critic_learning_rate}"
        assert self.target_critic_tau is None or 0 < self.target_critic_tau <= 1, (
            f"`target_critic_tau` must lie in (0, 1] (`None`: no target critic), not {self.target_critic_tau}"
        )
        assert self.max_action_grad_norm is None or self.max_action_grad_norm > 0, (
            f"`max_action_grad_norm` must be positive, or `None` for no limit, not {self.max_action_grad_norm}"
        )

    def _setup_optimizers(self) -> None:
        """
        Put the optimizers on the policy, so that they are saved and loaded with its parameters. They are the same whether
        gradients are wanted or not, which may be changed when a model is loaded.
        """
        self._actor = actor_parameters(self.policy)
        actor = [*self._actor.mean, *self._actor.std]
        self._critic = [p for p in self.policy.parameters() if not any(p is q for q in actor)]
        self.policy.critic_optimizer = th.optim.Adam(self._critic, eps=1e-5, fused=True)  # type: ignore[assignment]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        if self._unsupported() is None:
            state_dicts = [*state_dicts, "policy.critic_optimizer"]
        if self.target_critic is not None:
            state_dicts = [*state_dicts, "target_critic"]
        return state_dicts, variables

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_actor", "_critic", "_gradient_statistics"]

    def _unsupported(self) -> str | None:
        """:return: why gradients cannot be used here, whatever the environment offers; ``None`` if they can"""
        if not isinstance(self.action_space, spaces.Box):
            return f"its actions are {type(self.action_space).__name__}, not continuous"
        if not isinstance(self.observation_space, spaces.Box):
            return f"its observations are {type(self.observation_space).__name__}, not one array"
        if is_image_space(self.observation_space):
            return "its observations are images"
        if self.use_sde:
            return "gSDE's noise depends on the state"
        distribution = self.policy.action_dist
        if not isinstance(distribution, DiagGaussianDistribution) or isinstance(
            distribution, SquashedDiagGaussianDistribution
        ):
            return f"the policy's distribution is {type(distribution).__name__}, not a diagonal Gaussian"
        if not isinstance(self.rollout_buffer, GradientRolloutBuffer):
            return f"{type(self.rollout_buffer).__name__} does not derive from GradientRolloutBuffer"
        return None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        assert self.env is not None, "This model has no environment: give it one by `set_env`, or by `load(..., env=env)`."
        self._switch_gradients(True)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def learn(
        self: SelfGradientPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GradientPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGradientPPO:
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        self._switch_gradients(False)  # whoever evaluates the policy on these environments does not pay for them
        return self

    def _switch_gradients(self, on: bool) -> None:
        assert self.env is not None
        if self._wants_gradients() and self._unsupported() is None and self.env.has_attr("set_differentiable"):
            self.env.env_method("set_differentiable", on)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        try:
            return self._collect(env, callback, rollout_buffer, n_rollout_steps)
        except (EOFError, ConnectionError) as error:
            death = close_if_worker_died(env)
            if death is None:
                raise
            raise RuntimeError(death) from error

    def _collect(self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int) -> bool:
        self._has_gradients = self._gradients_unusable = False
        self._gradient_statistics = {}
        if not self._wants_gradients():
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        reason = self._unsupported()
        if reason is not None:
            self._warn_plain_ppo(reason)
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert isinstance(rollout_buffer, GradientRolloutBuffer)
        tap = GradientCollector(self.policy, rollout_buffer)
        chain = CallbackList([tap, callback])
        chain.model = self
        completed = super().collect_rollouts(env, chain, rollout_buffer, n_rollout_steps)
        if completed:
            check_advantages(rollout_buffer.advantages)
        if not tap.has_channel:
            self._warn_plain_ppo('its environments return no info["grad"]')
        elif completed:
            self._fill_action_gradients(rollout_buffer)
        return completed

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """As SB3's, but a file is replaced only by a complete one: an interrupt leaves the old one."""
        if not isinstance(path, (str, Path)):
            return super().save(path, exclude, include)
        target = Path(path) if Path(path).suffix else Path(f"{path}.zip")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        try:
            with part.open("wb") as file:
                super().save(file, exclude, include)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def _warn_plain_ppo(self, reason: str) -> None:
        if not self._warned:
            warnings.warn(
                f"{type(self).__name__} trains without gradients, as plain PPO: {reason}. "
                "Pass `alpha=0` if that is what you want.",
                stacklevel=2,
            )
            self._warned = True

    def _fill_action_gradients(self, buffer: GradientRolloutBuffer) -> None:
        """Recover the noise, sweep the window, and make the gradients safe; log what was dropped."""
        self.policy.set_training_mode(False)
        with th.no_grad():
            mean, std = self.gaussian(self._flat(buffer.observations))
        mean, std = (x.reshape(*buffer.actions.shape) for x in (mean, std))
        noise = (th.as_tensor(buffer.actions, device=self.device).to(mean) - mean) / std
        buffer.noise = noise.cpu().numpy()

        def policy_vjp(t: int, action_bar: th.Tensor) -> th.Tensor:
            obs = buffer.to_torch(buffer.observations[t]).requires_grad_()
            with th.enable_grad():
                mean, std = self.gaussian(obs)
                (obs_bar,) = th.autograd.grad(mean + std * noise[t], obs, action_bar)
            return obs_bar.reshape(len(obs), -1)

        def tensor(array: np.ndarray) -> th.Tensor:
            return th.as_tensor(array, device=self.device, dtype=mean.dtype)

        gradients = action_gradients(
            buffer.step_gradients,
            tensor(buffer.action_scale),
            tensor(buffer.observation_scale),
            tensor(buffer.reward_scale),
            self._value_gradients(buffer).to(mean.dtype),
            policy_vjp,
            th.as_tensor(buffer.bootstrap, device=self.device),
            th.as_tensor(buffer.continues, device=self.device),
            self.gamma,
            self.gae_lambda if self.action_gradient_lambda is None else self.action_gradient_lambda,
        )
        norm = gradients.norm(dim=2, keepdim=True)
        # A norm that overflows is as useless as one of what is not finite.
        finite = norm.isfinite()
        gradients, norm = gradients.where(finite, 0.0), norm.where(finite, 0.0)
        if self.max_action_grad_norm is not None:
            gradients = gradients * (self.max_action_grad_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
        buffer.action_gradients = gradients.cpu().numpy()
        self._has_gradients = bool(finite.any())
        self._gradients_unusable = not self._has_gradients
        self._gradient_statistics = {
            "train/action_grad_norm": norm.mean().item(),
            "train/action_grad_norm_max": norm.max().item(),
            "train/action_grad_variance": gradients.var(dim=(0, 1), unbiased=False).sum().item(),
            "train/nonfinite_grad_fraction": 1.0 - finite.float().mean().item(),
        }

    def _log_gradients(self) -> None:
        """To be called by ``train``: SB3 dumps between rollout and update, and what belongs together stands in one row."""
        for key, value in self._gradient_statistics.items():
            self.logger.record(key, value)

    def _critic_fit(self, batch: GradientBatch) -> None:
        """
        Fit the critic to the returns of the last windows, at a rate that decays as the learning rate does, and let the target
        critic follow.
        """
        assert self.critic_memory is not None
        if self.critic_steps > 0:
            self.critic_memory.add(batch.observations.cpu().numpy(), batch.returns.cpu().numpy())
            decay = self.lr_schedule(self._current_progress_remaining) / self.lr_schedule(1.0)
            loss = fit_critic(
                self.policy,
                self.policy.critic_optimizer,  # type: ignore[arg-type]
                self.critic_memory,
                self.critic_steps,
                self.critic_batch_size,
                self.critic_learning_rate * decay,
                self.max_grad_norm,
            )
            self.logger.record("train/critic_loss", loss)
        if self.target_critic is not None and self.target_critic_tau is not None:
            polyak_update(self.policy.parameters(), self.target_critic.parameters(), self.target_critic_tau)

    def gaussian(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: (n, ...), as the policy sees them
        :return: mean and standard deviation of the action before clip or squash, (n, action_dim) each
        """
        distribution: Any = self.policy.get_distribution(observations)
        return distribution.distribution.mean, distribution.distribution.stddev

    def _flat(self, window: np.ndarray) -> th.Tensor:
        return th.as_tensor(window, device=self.device).reshape(-1, *window.shape[2:])

    def _value_gradients(self, buffer: GradientRolloutBuffer) -> th.Tensor:
        """:return: ∇V at every next observation of the window, (n_steps, n_envs, k)"""
        observations = self._flat(buffer.next_observations).clone().requires_grad_()
        with th.enable_grad():
            critic = self.policy if self.target_critic is None else self.target_critic
            (gradient,) = th.autograd.grad(critic.predict_values(observations).sum(), observations)
        return gradient.reshape(*buffer.next_observations.shape[:2], -1)
