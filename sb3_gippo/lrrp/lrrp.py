"""LR+RP: likelihood-ratio and reparameterisation gradients, mixed by the inverse of their variances."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn

from sb3_gippo.common.optimizers import trainable
from sb3_gippo.on_policy.actor import forget_graph, gaussian
from sb3_gippo.on_policy.policy_gradient import PolicyGradient, likelihood_ratio, reparameterised
from sb3_gippo.rollout.buffer import GradientBatch

SAMPLES = 16
"""a variance is estimated from so many samples at most, as in the paper"""
GROUPS_AT_ONCE = 4
"""variances whose per-sample gradients are in memory at a time"""


def lr_share(variances: th.Tensor) -> th.Tensor:
    """
    The weight of the first of two unbiased estimates that makes the variance of their mix least, if they are uncorrelated.

    :param variances: of both, (..., 2); what is not a number counts as infinite
    :return: v₂ / (v₁ + v₂), (...); ½ where both vanish, or neither is finite
    """
    first, second = variances.nan_to_num(nan=th.inf, posinf=th.inf).unbind(-1)
    return (1 / (1 + first / second)).nan_to_num(0.5)


def halves(n_envs: int, n_steps: int, per_step: bool) -> tuple[th.Tensor, th.Tensor]:
    """
    Two parts of a window, of different environments as far as their number allows.

    :param n_envs: environments
    :param n_steps: steps of each
    :param per_step: whether each time step is a group of its own
    :return: the rows of the flattened window (an environment's steps follow one another) in each half, (groups, rows)
    """
    rows = th.arange(n_envs * n_steps)
    if per_step:
        by_step = rows.reshape(n_envs, n_steps).T
        return by_step[:, : n_envs // 2], by_step[:, n_envs // 2 :]
    return rows[None, : len(rows) // 2], rows[None, len(rows) // 2 :]


class _GaussianOf(nn.Module):
    """A policy's Gaussian as a module's output, which is what ``torch.func`` calls with other parameters."""

    def __init__(self, policy: ActorCriticPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return gaussian(self.policy, observations)


def variances(
    policy: ActorCriticPolicy, parameters: list[nn.Parameter], batch: GradientBatch, advantages: th.Tensor, rows: th.Tensor
) -> th.Tensor:
    """
    Variances of a single sample's likelihood-ratio and reparameterisation gradient: traces of their sample covariances.

    :param policy: with a diagonal Gaussian
    :param parameters: of it, with respect to which the gradients are
    :param batch: the window
    :param advantages: Â (n,), less a baseline
    :param rows: of the window, (groups, samples)
    :return: (groups, 2)
    """
    module, wanted = _GaussianOf(policy), {id(parameter) for parameter in parameters}
    at = {name: parameter.detach() for name, parameter in module.named_parameters() if id(parameter) in wanted}

    def objectives(at: dict[str, th.Tensor], sample: dict[str, th.Tensor], advantage: th.Tensor) -> th.Tensor:
        one = GradientBatch(**{name: value[None] for name, value in sample.items()})
        found = th.func.functional_call(module, at, (one.observations,))
        return th.cat([likelihood_ratio(one, advantage[None], found), reparameterised(one, found)])

    def traces(samples: dict[str, th.Tensor], advantages: th.Tensor) -> th.Tensor:
        gradients = th.func.vmap(th.func.jacrev(objectives), in_dims=(None, 0, 0))(at, samples, advantages)
        return th.stack([g.flatten(2).var(0).sum(-1) for g in gradients.values()]).sum(0)

    samples = {field.name: getattr(batch, field.name)[rows] for field in fields(batch)}
    found: th.Tensor = th.func.vmap(traces, chunk_size=GROUPS_AT_ONCE)(samples, advantages[rows])
    forget_graph(policy)
    return found


class LRRP(PolicyGradient):
    """
    The baseline "LR+RP" of the GI-PPO paper: one step per window along k LR + (1 - k) RP, both of the same advantages, with
    k = v_RP / (v_LR + v_RP) from the variances v of per-sample gradients. With ``per_step`` each time step of the window has
    a k of its own, as IVW-H has it (https://arxiv.org/abs/2604.18161).

    Each half of a window takes its k, and the baseline that is subtracted from its advantages, from the other half: a k from
    the very samples that it weighs would bias the mix. A window whose action gradients all vanish has LR's step.

    Where the environments offer no gradients it refuses to train, see :class:`~sb3_gippo.lr.LR`.

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate of the actor's Adam, it can be a function of the current progress remaining
    :param n_steps: The number of steps to run for each environment per update, the window the gradients flow through
    :param gamma: Discount factor
    :param gae_lambda: λ of the advantages, and of the returns the critic is fitted to
    :param max_grad_norm: The maximum value for the gradient clipping
    :param per_step: Whether to weigh each time step of the window by variances of its own; it needs four environments or more
    :param action_gradient_lambda: λ of the advantages whose gradient is used; ``None`` for ``gae_lambda``, another one and the
        two estimates are of different objectives
    :param critic_epochs: Passes over the last windows that fit the critic after each update
    :param critic_kwargs: Settings of this fit that differ from their defaults, see
        :class:`~sb3_gippo.on_policy.critic.CriticSettings`
    :param target_critic_tau: Advantages and their gradients take their values from a copy of the critic that follows it by
        this share after every update; ``None`` for the critic itself
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 32,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        max_grad_norm: float = 1.0,
        per_step: bool = False,
        action_gradient_lambda: float | None = None,
        critic_epochs: int = 4,
        critic_kwargs: dict[str, Any] | None = None,
        target_critic_tau: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            max_grad_norm=max_grad_norm,
            action_gradient_lambda=action_gradient_lambda,
            critic_epochs=critic_epochs,
            critic_kwargs=critic_kwargs,
            target_critic_tau=target_critic_tau,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.per_step = per_step
        if _init_setup_model:
            self._setup_model()

    def _check_hyperparameters(self) -> None:
        super()._check_hyperparameters()
        samples = self.n_envs if self.per_step else self.n_envs * self.n_steps
        what = "environments" if self.per_step else "steps in a window"
        assert samples >= 4, (
            f"`per_step={self.per_step}` takes variances over the halves of {samples} {what}: it needs 4 or more"
        )

    def _improve_actor(self, batch: GradientBatch) -> None:
        assert self.actor is not None
        n_envs = self.rollout_buffer.n_envs
        parts = halves(n_envs, len(batch.advantages) // n_envs, self.per_step)
        advantages, shares = self._weigh(batch, parts)
        self.logger.record("train/lr_share", shares.mean().item())
        policy = self.actor.gaussian(batch.observations)
        by_lr, by_rp = likelihood_ratio(batch, advantages, policy), reparameterised(batch, policy)
        self._actor_step((shares * by_lr + (1 - shares) * by_rp).mean())

    def _weigh(self, batch: GradientBatch, parts: tuple[th.Tensor, th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: the window
        :param parts: its :func:`halves`
        :return: (n,) each, advantages less their baseline, and what LR's gradient is weighed by
        """
        assert self.actor is not None
        advantages, shares = batch.advantages.clone(), th.ones_like(batch.advantages)
        usable = bool(batch.action_gradients.any())
        parameters = trainable([*self.actor.mean, *self.actor.std])
        self.policy.set_training_mode(False)
        for part, other in (parts, parts[::-1]):
            baseline = batch.advantages[other].mean()
            advantages[part] -= baseline
            if usable:
                chosen = other[:, th.randperm(other.shape[1])[:SAMPLES]].to(self.device)
                # Less the same baseline: the other one is made of the rows that are to be weighed.
                found = variances(self.policy, parameters, batch, batch.advantages - baseline, chosen)
                shares[part] = lr_share(found)[:, None]
        self.policy.set_training_mode(True)
        return advantages, shares
