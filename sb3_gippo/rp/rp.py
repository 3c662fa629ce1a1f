"""RP: the reparameterisation gradient of a window's return, as in SHAC."""

from __future__ import annotations

from sb3_gippo.on_policy.policy_gradient import PolicyGradient, reparameterised
from sb3_gippo.rollout.buffer import GradientBatch


class RP(PolicyGradient):
    """
    Policy gradient by reparameterisation: one step per window along the analytic gradient of its return, closed by the
    critic's value, with the policy in the loop. The baseline "RP" of the GI-PPO paper, after SHAC
    (https://arxiv.org/abs/2204.07137); every step of the window has the same weight.

    Where the environments offer no gradients there is nothing to learn from, and it refuses to train.

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate of the actor's Adam, it can be a function of the current progress remaining
    :param n_steps: The number of steps to run for each environment per update, the window the gradients flow through
    :param gamma: Discount factor
    :param gae_lambda: λ of the returns the critic is fitted to
    :param max_grad_norm: The maximum value for the gradient clipping
    :param action_gradient_lambda: λ of the return whose gradient is used; ``None`` for ``gae_lambda``
    :param max_action_grad_norm: Longer rows of the action gradient are scaled down to this norm; ``None`` for no limit
    :param critic_epochs: Passes over the last windows that fit the critic after each update
    :param critic_kwargs: Settings of this fit that differ from their defaults, see
        :class:`~sb3_gippo.on_policy.critic.CriticSettings`
    :param target_critic_tau: Returns and their gradients take their values from a copy of the critic that follows it by this
        share after every update; ``None`` for the critic itself
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    def _improve_actor(self, batch: GradientBatch) -> None:
        assert self.actor is not None
        if self._has_gradients:
            self._actor_step(reparameterised(batch, self.actor.gaussian(batch.observations)).mean())
