"""The action gradient dÂ_t/da_t of a whole window, by one backward (adjoint) sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th

from sb3_gippo.rollout.step_gradient import StepGradient


class Limit(NamedTuple):
    """Where gradients are no longer believed: how much one action's noise may be said to change the advantage."""

    std: th.Tensor
    """σ (T, n_envs, m)"""
    size: float
    """L, the longest |σ g| that goes on undiminished, in units of the advantage"""


def action_gradients(
    step_gradients: Sequence[StepGradient],
    action_scale: th.Tensor,
    observation_scale: th.Tensor,
    reward_scale: th.Tensor,
    value_gradients: th.Tensor,
    policy_vjp: Callable[[int, th.Tensor], th.Tensor],
    bootstrap: th.Tensor,
    continues: th.Tensor,
    gamma: float,
    gae_lambda: float,
    limit: Limit | None = None,
) -> th.Tensor:
    """
    Sweep the window from its last step to its first.

    With δ_t = r_t + γ b_t V(o'_t) - V(o_t) and Â_t = Σ_l (γλ)^l δ_{t+l}, cotangents x̄ and ō arriving from step t+1 where the
    episode went on (m_t = 1):

        (x̄_t, g_t) = vjp_t(γλ m_t x̄_{t+1},  γ b_t ∇V(o'_t) + γλ m_t ō_{t+1},  1)
        ō_t = (∂a_t/∂o_t)ᵀ g_t - ∇V(o_t)          with ∂a/∂o at fixed noise

    The policy stays in the loop: later actions react to earlier ones. Masks are applied by selection, not multiplication:
    what is not finite in one episode never reaches another.

    With a limit L, x̄_t and ō_t are multiplied by c_t = min(1, L / |σ_t g_t|) before they go on: where the dynamics are
    chaotic, or a contact is hard, the gradient of what comes later explodes, and λ is lowered to λ c_t at that step, for that
    environment. The value of the state that was reached, γ ∇V(o'_{t-1}), stays.

    :param step_gradients: T of them
    :param action_scale: (T, n_envs, m), derivative of the environment's action by the policy's
    :param observation_scale: (T, n_envs, k), derivative of the policy's next observation by the environment's
    :param reward_scale: (T, n_envs), the same of the reward
    :param value_gradients: (T, n_envs, k), ∇V at the next observation (the terminal one where an episode ended)
    :param policy_vjp: ``(t, g) -> (∂a_t/∂o_t)ᵀ g``, (n_envs, m) to (n_envs, k)
    :param bootstrap: (T, n_envs) bools, b_t
    :param continues: (T, n_envs) bools, m_t; the last row must be all False
    :param gamma: γ
    :param gae_lambda: λ
    :param limit: ``None`` for no limit
    :return: g (T, n_envs, m), with respect to the policy's action
    """
    # Asked for once: on another device than the CPU every question waits for it.
    goes_on_anywhere = continues.any(dim=1).tolist()
    assert not goes_on_anywhere[-1], "nothing may flow in from behind the window's end"
    gradients = th.zeros_like(action_scale)
    decay = gamma * gae_lambda
    state_bar: th.Tensor | None = None
    obs_bar = th.zeros_like(value_gradients[0])
    for t in reversed(range(len(step_gradients))):
        goes_on = continues[t, :, None]
        if state_bar is not None:
            state_bar = decay * state_bar.where(goes_on, 0.0)
        next_obs_bar = gamma * value_gradients[t].where(bootstrap[t, :, None], 0.0) + decay * obs_bar.where(goes_on, 0.0)
        state_bar, action_bar = step_gradients[t].vjp(state_bar, next_obs_bar * observation_scale[t], reward_scale[t])
        gradients[t] = action_bar * action_scale[t]
        g, share = gradients[t], 1.0
        if limit is not None:
            size = (limit.std[t] * g).norm(dim=1, keepdim=True)
            # What is not finite stays so, for the caller to leave out.
            share = (limit.size / size.clamp(min=1e-30)).clamp(max=1.0).where(size.isfinite(), 1.0)
            g, state_bar = share * g, share * state_bar
        if t > 0 and goes_on_anywhere[t - 1]:
            # Where the episode goes on, o_t is o'_{t-1}; elsewhere the value is not used.
            obs_bar = policy_vjp(t, g) - share * value_gradients[t - 1]
    return gradients
