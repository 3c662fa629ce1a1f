"""The policies: SB3's own, with a tanh squash, a state-dependent σ and layer normalisation by keyword."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

LOG_STD_MIN = math.log(1.2e-7)
"""log σ is kept above: below it float32 can no longer tell the actions apart"""
LOG_STD_MAX = 2.0
"""a state-dependent log σ is kept below"""


class MlpPolicy(ActorCriticPolicy):
    """
    SB3's actor-critic policy; see there for the other arguments.

    :param squash_actions: the environment receives tanh of the Gaussian action, rescaled to the action space, instead of a
        clipped one (a clip has no gradient outside the bounds). PPO and the α-step work on the Gaussian action, before tanh.
    :param state_dependent_std: log σ(o) is the parameter ``log_std`` plus a linear head on the actor's last layer, which
        starts at zero; clamped to [:data:`LOG_STD_MIN`, :data:`LOG_STD_MAX`]
    :param layer_norm: normalise after each activation of actor and critic, as in the paper's networks
    :raises ValueError: for options that need continuous actions or exclude gSDE
    """

    def __init__(
        self,
        *args: Any,
        squash_actions: bool = False,
        state_dependent_std: bool = False,
        layer_norm: bool = False,
        **kwargs: Any,
    ):
        self.squash_actions = squash_actions
        self.state_dependent_std = state_dependent_std
        self.layer_norm = layer_norm
        super().__init__(*args, **kwargs)
        if squash_actions:
            if not isinstance(self.action_space, spaces.Box) or self.use_sde:
                raise ValueError("squash_actions needs continuous actions and no gSDE (which has its own squash_output).")
            # SB3 then maps actions by `unscale_action` instead of clipping them, in rollouts and in `predict`.
            self._squash_output = True

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        if self.layer_norm:
            extractor = self.mlp_extractor
            extractor.policy_net = _with_layer_norm(extractor.policy_net, self.activation_fn).to(self.device)
            extractor.value_net = _with_layer_norm(extractor.value_net, self.activation_fn).to(self.device)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.state_dependent_std:
            if not isinstance(self.action_dist, DiagGaussianDistribution):
                raise ValueError(
                    "state_dependent_std needs continuous actions and no gSDE (whose σ depends on the state already)."
                )
            # No bias: `log_std` is one.
            self.log_std_net = nn.Linear(self.mlp_extractor.latent_dim_pi, self.action_dist.action_dim, bias=False)
            nn.init.zeros_(self.log_std_net.weight)
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        if not self.state_dependent_std:
            return super()._get_action_dist_from_latent(latent_pi)
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        log_std = (self.log_std + self.log_std_net(latent_pi)).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return self.action_dist.proba_distribution(self.action_net(latent_pi), log_std)

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        return super().unscale_action(np.tanh(scaled_action) if self.squash_actions else scaled_action)

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        scaled = super().scale_action(action)
        if not self.squash_actions:
            return scaled
        limit = 1 - np.finfo(scaled.dtype).eps
        return np.arctanh(np.clip(scaled, -limit, limit))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # Without them it is SB3's policy, whose own class can load the file as well.
        used = [name for name in ("squash_actions", "state_dependent_std", "layer_norm") if getattr(self, name)]
        return {**super()._get_constructor_parameters(), **dict.fromkeys(used, True)}


def _with_layer_norm(network: nn.Sequential, activation_fn: type[nn.Module]) -> nn.Sequential:
    """:return: the network with a LayerNorm after each activation"""
    layers: list[nn.Module] = []
    width = 0
    for layer in network:
        layers.append(layer)
        if isinstance(layer, nn.Linear):
            width = layer.out_features
        elif isinstance(layer, activation_fn):
            layers.append(nn.LayerNorm(width))
    return nn.Sequential(*layers)


CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy
