"""What the algorithms that use environment gradients share: PPO that fills its buffer with action gradients."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.distributions import DiagGaussianDistribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_gippo.common.hyperparameters import check_integer, check_number, settings_from
from sb3_gippo.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_gippo.common.saving import add_learner, read_learner, replacing
from sb3_gippo.on_policy.actor import Actor, forget_graph, gaussian
from sb3_gippo.on_policy.critic import CriticFit, CriticSettings, TargetCritic
from sb3_gippo.rollout.action_gradients import fill_action_gradients
from sb3_gippo.rollout.buffer import GradientBatch, GradientRolloutBuffer
from sb3_gippo.rollout.collector import GradientCollector, Left, check_advantages
from sb3_gippo.rollout.states import states_told, tensors_with_graph_named
from sb3_gippo.rollout.workers import dead_workers_named, settle

SelfGradientPPO = TypeVar("SelfGradientPPO", bound="GradientPPO")

LONGEST_WINDOW, FEWEST_ROWS = 128, 64
"""steps, and transitions: what entries for gradients keep to"""


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

    switched_off_by: ClassVar[str] = "alpha=0"
    """the argument that asks for plain PPO"""

    rollout_buffer: RolloutBuffer
    max_action_grad_norm: float | None = None
    action_gradient_lambda: float | None
    critic_epochs: int
    critic_kwargs: dict[str, Any] | None
    target_critic_tau: float | None

    actor: Actor | None = None
    """the policy's actor; this and the critic's fit come into being with the first gradients"""
    critic_fit: CriticFit | None = None
    target_critic: TargetCritic | None = None
    """none without ``target_critic_tau``"""

    _has_channel: bool = False
    """whether the environments offered gradients in the rollout in the buffer"""
    _has_gradients: bool = False
    """whether at least one of its action gradients is finite"""
    _gradient_statistics: dict[str, float]
    """of the rollout in the buffer, by the key they are logged under"""
    _left: Left | None = None
    """how the last window ended"""
    _warned: tuple[str, ...] = ()
    """what has been warned of"""

    def _wants_gradients(self) -> bool:
        raise NotImplementedError

    def _has_learner(self) -> bool:
        """:return: whether something learns beside PPO, which a file may hold the state of"""
        return self._wants_gradients()

    def _limits_gradients(self) -> bool:
        """:return: whether the sweep shortens action gradients that claim more than the advantages' spread"""
        return False

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.vector.VectorEnv):
            raise TypeError(
                f"{type(env).__name__} is one of Gymnasium's vector environments, which SB3's algorithms do not take: "
                "make it by sb3_gippo.make_vec_env(id, n_envs)."
            )
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        # A PPO's zip names the buffer SB3 has chosen; ours is the same without gradients.
        if self.rollout_buffer_class in (None, RolloutBuffer) and not isinstance(self.observation_space, spaces.Dict):
            self.rollout_buffer_class = GradientRolloutBuffer
        self._check_hyperparameters()
        super()._setup_model()
        self.actor = self.critic_fit = self.target_critic = None

    def _maybe_recommend_cpu(self, mlp_class_name: str = "ActorCriticPolicy") -> None:
        super()._maybe_recommend_cpu(MlpPolicy.__name__ if self.policy_class is MlpPolicy else mlp_class_name)

    def _check_hyperparameters(self) -> None:
        """:raises AssertionError: with a sentence, if one is out of range"""
        if self.action_gradient_lambda is not None:
            check_number("action_gradient_lambda", self.action_gradient_lambda, 0, 1, otherwise=" (`None`: `gae_lambda`)")
        check_integer("critic_epochs", self.critic_epochs, 0)
        self._critic_settings = settings_from(CriticSettings, "critic_kwargs", self.critic_kwargs)
        if self.target_critic_tau is not None:
            check_number(
                "target_critic_tau", self.target_critic_tau, 0, 1, open_low=True, otherwise=" (`None`: no target critic)"
            )
        if self.max_action_grad_norm is not None:
            check_number("max_action_grad_norm", self.max_action_grad_norm, open_low=True, otherwise=" (`None`: no limit)")

    def _setup_learner(self) -> None:
        """
        Make what learns from gradients. Not before there are some: a policy may count, or draw random numbers in, its
        forward passes, and without gradients this is PPO.
        """
        self.actor = Actor(self.policy)
        self.critic_fit = CriticFit(self.policy, self.actor.critic, self._critic_settings)
        if self.target_critic_tau is not None:
            self.target_critic = TargetCritic(self.policy, [*self.actor.mean, *self.actor.std], self.target_critic_tau)

    def _learner_state(self, with_critic_fit: bool) -> dict[str, Any]:
        """:return: what :meth:`_load_learner_state` takes, as tensors and plain values"""
        assert self.critic_fit is not None
        target = None if self.target_critic is None else self.target_critic.critic_state()
        return {"critic_fit": self.critic_fit.state_dict() if with_critic_fit else None, "target_critic": target}

    def _load_learner_state(self, state: dict[str, Any]) -> None:
        assert self.critic_fit is not None
        if state["critic_fit"] is not None:
            self.critic_fit.load_state_dict(state["critic_fit"])
        if self.target_critic is not None and state["target_critic"] is not None:
            self.target_critic.load_critic_state(state["target_critic"])

    def _excluded_save_params(self) -> list[str]:
        ours = ["actor", "critic_fit", "target_critic", "_critic_settings", "_gradient_statistics", "_left"]
        return [*super()._excluded_save_params(), *ours]

    def _unsupported(self) -> str | None:
        """:return: why gradients cannot be used here, whatever the environment offers; ``None`` if they can"""
        if not isinstance(self.action_space, spaces.Box):
            return f"its actions are {type(self.action_space).__name__}, not continuous"
        if self.action_space.dtype.kind != "f":
            return f"its actions are {self.action_space.dtype}, which the rollout buffer rounds"
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
        self._left = None
        self._switch_gradients(True)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def learn(
        self: SelfGradientPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGradientPPO:
        """As PPO's. The name of the log is that of the class, if no other is given."""
        tb_log_name = tb_log_name or type(self).__name__
        try:
            with dead_workers_named(self.env):
                super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
                self._switch_gradients(False)  # whoever evaluates the policy on these environments does not pay for them
        except BaseException:
            if self.env is not None:
                # An interrupt leaves answers of the workers behind; what raised may have taken the environments along.
                with suppress(Exception):
                    settle(self.env)
                    self._switch_gradients(False)
            raise
        finally:
            forget_graph(self.policy)
        return self

    def _switch_gradients(self, on: bool) -> None:
        assert self.env is not None
        if not self._wants_gradients() or self._unsupported() is not None:
            return
        with suppress(NotImplementedError):  # a VecEnv need not have single environments to ask
            if self.env.has_attr("set_differentiable"):
                self.env.env_method("set_differentiable", on)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self._has_channel = self._has_gradients = False
        self._gradient_statistics = {}
        if not self._wants_gradients():
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        reason = self._unsupported()
        if reason is not None:
            self._warn_plain_ppo(reason)
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert isinstance(rollout_buffer, GradientRolloutBuffer)
        with states_told(env) as told, tensors_with_graph_named(env):
            finish = partial(self._differentiate, rollout_buffer)
            collector = GradientCollector(self.policy, rollout_buffer, told, self._left, finish)
            chain = CallbackList([collector, callback])
            chain.model = self
            completed = super().collect_rollouts(env, chain, rollout_buffer, n_rollout_steps)
        self._left = collector.left
        if not collector.has_channel:
            self._warn_plain_ppo('its environments return no info["grad"]')
        return completed

    def _warn_plain_ppo(self, reason: str) -> None:
        self._warn_once(
            f"{type(self).__name__} trains without gradients, as plain PPO: {reason}. "
            f"Pass `{self.switched_off_by}` if that is what you want."
        )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            warnings.warn(message, stacklevel=3)
            self._warned = (*self._warned, message)

    def _hint_at_window(self) -> None:
        """Say once, with ``verbose``, that PPO's usual window is not one for gradients: SB3's default has 2,048 steps."""
        n_steps, rows = self.n_steps, self.n_steps * self.n_envs
        if self.verbose < 1:
            return
        if n_steps > LONGEST_WINDOW:
            print(
                f"A window of {n_steps} steps, {rows} transitions an update, is long for gradients: they allow updates from "
                "far fewer, n_steps=32 in 64 environments for instance."
            )
        elif rows < FEWEST_ROWS:
            print(
                f"{rows} transitions an update are few: what of the gradients is signal is measured on them. "
                f"Take more environments, or longer windows, {FEWEST_ROWS} transitions or more."
            )

    def _differentiate(self, buffer: GradientRolloutBuffer) -> None:
        """Fill the window's action gradients, and see whether it has any that are finite."""
        self._has_channel = True
        if self.actor is None:
            self._setup_learner()
            self._hint_at_window()
        self.policy.set_training_mode(False)
        values: Any = self.policy.predict_values
        if self.target_critic is not None:
            values = self.target_critic.values
            self._use_target_values(buffer)
        check_advantages(buffer.advantages)
        found = fill_action_gradients(
            buffer,
            lambda observations: gaussian(self.policy, observations),
            values,
            self.gae_lambda if self.action_gradient_lambda is None else self.action_gradient_lambda,
            self.max_action_grad_norm,
            self._limits_gradients(),
        )
        self._has_gradients, self._gradient_statistics = found
        if not self._has_gradients:
            self._warn_once(
                f"Not one action gradient of this window is finite: {type(self).__name__} goes on without them as long as "
                "that lasts. See what derivatives the environment hands over (check_differentiable_env)."
            )

    @th.no_grad()
    def _use_target_values(self, buffer: GradientRolloutBuffer) -> None:
        """
        Compute advantages and returns again, with the target critic's values in the place of the critic's: advantages and
        their gradients are of one function. The values PPO may clip against stay the critic's.
        """
        assert self.target_critic is not None
        target = self.target_critic.values
        after = th.as_tensor(buffer.next_observations, device=self.device)
        truncated = buffer.bootstrap & buffer.ended
        if truncated.any():
            # SB3 has added the critic's value to these rewards.
            cut = after[th.as_tensor(truncated, device=self.device)]
            difference = target(cut) - self.policy.predict_values(cut)
            buffer.rewards[truncated] += self.gamma * difference.flatten().cpu().numpy()
        own = buffer.values
        flat = th.as_tensor(buffer.observations, device=self.device).reshape(-1, *buffer.observations.shape[2:])
        buffer.values = target(flat).reshape(own.shape).cpu().numpy()
        buffer.compute_returns_and_advantage(last_values=target(after[-1]), dones=buffer.ended[-1])
        buffer.values = own

    def _log_gradients(self) -> None:
        """To be called by ``train``: SB3 dumps between rollout and update, and what belongs together stands in one row."""
        for key, value in self._gradient_statistics.items():
            self.logger.record(key, value)

    @property
    def _shares_features(self) -> bool:
        assert self.actor is not None
        return len(self.actor.moves_mean) > len(self.actor.mean)

    def _train_ppo(self) -> None:
        """PPO's update; a critic that has a fit of its own, and nothing in common with the actor, is left to that."""
        vf_coef = self.vf_coef
        if self.critic_epochs > 0 and not self._shares_features:
            self.vf_coef = 0.0
        try:
            super().train()
        finally:
            self.vf_coef = vf_coef

    def _fit_critic(self, batch: GradientBatch) -> None:
        """Fit the critic to the returns of the last windows, and let the target critic follow."""
        assert self.critic_fit is not None
        if self.critic_epochs > 0:
            # In training mode normalisation layers count, and those that the actor shares would move it.
            self.policy.set_training_mode(not self._shares_features)
            fitted = self.critic_fit.fit(
                batch.observations, batch.returns, self.critic_epochs, self._current_progress_remaining
            )
            if fitted is not None:
                self.logger.record("train/critic_loss", fitted[0])
                self.logger.record("train/critic_learning_rate", fitted[1])
        if self.target_critic is not None:
            self.target_critic.follow()

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        As SB3's, but a file is replaced only by a complete one: an interrupt leaves the old one, and several processes may
        write to one path.

        :param path: path to the file where the rl agent should be saved, or an open file
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway; ``"critic_fit"`` for the
            windows that ``critic_epochs`` draw from, and the moments of their optimizer, which may be large
        """
        include = set(include or ())
        zipped = io.BytesIO()
        super().save(zipped, exclude, include - {"critic_fit"})
        state = {} if self.actor is None else self._learner_state("critic_fit" in include)
        content = add_learner(zipped.getvalue(), state)
        if not isinstance(path, (str, Path)):
            path.write(content)
            return
        with replacing(Path(path) if Path(path).suffix else Path(f"{path}.zip")) as file:
            file.write(content)

    @classmethod
    def load(
        cls: type[SelfGradientPPO],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfGradientPPO:
        """
        As SB3's; PPO's files can be loaded as well. What the algorithm has learned of its problem beside the policy (α, the
        adaptive rates, the optimizers' moments, the target critic) is loaded with it, as far as ``kwargs`` leave it a place.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on
        :param device: Device on which the code should run.
        :param custom_objects: Dictionary of objects to replace upon loading
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        """
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        state = read_learner(path, model.device)
        if state and model._has_learner() and model._unsupported() is None:
            model._setup_learner()
            model._load_learner_state(state)
        return model
