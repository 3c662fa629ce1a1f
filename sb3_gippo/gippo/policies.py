"""The policies of GIPPO: SB3's own, with a tanh squash by keyword."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy


class MlpPolicy(ActorCriticPolicy):
    """
    SB3's actor-critic policy; see there for the other arguments.

    :param squash_actions: the environment receives tanh of the Gaussian action, rescaled to the action space, instead of a
        clipped one (a clip has no gradient outside the bounds). PPO and the α-step work on the Gaussian action, before tanh.
    """

    def __init__(self, *args: Any, squash_actions: bool = False, **kwargs: Any):
        self.squash_actions = squash_actions
        super().__init__(*args, **kwargs)
        if squash_actions:
            if not isinstance(self.action_space, spaces.Box) or self.use_sde:
                raise ValueError("squash_actions needs continuous actions and no gSDE (which has its own squash_output).")
            # SB3 then maps actions by `unscale_action` instead of clipping them, in rollouts and in `predict`.
            self._squash_output = True

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        return super().unscale_action(np.tanh(scaled_action) if self.squash_actions else scaled_action)

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        scaled = super().scale_action(action)
        if not self.squash_actions:
            return scaled
        limit = 1 - np.finfo(scaled.dtype).eps
        return np.arctanh(np.clip(scaled, -limit, limit))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "squash_actions": self.squash_actions}


CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy
