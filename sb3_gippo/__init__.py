"""GI-PPO for Stable-Baselines3: PPO that uses the analytic gradients of differentiable environments."""

from typing import TYPE_CHECKING, Any

import gippo_envs  # noqa: F401  (registers the environments)
from sb3_gippo.checker import GradientReport, check_differentiable_env
from sb3_gippo.gippo import GIPPO
from sb3_gippo.lr import LR
from sb3_gippo.lrrp import LRRP
from sb3_gippo.pe import PE
from sb3_gippo.rollout.step_gradient import GradientChannelError
from sb3_gippo.rp import RP
from sb3_gippo.rpo import RPO
from sb3_gippo.vec_env import TorchVecEnv, make_vec_env
from sb3_gippo.version import __version__

if TYPE_CHECKING:
    from sb3_gippo.mujoco.wrapper import MujocoGradient as MujocoGradient

__all__ = [
    "GIPPO",
    "LR",
    "LRRP",
    "PE",
    "RP",
    "RPO",
    "GradientChannelError",
    "GradientReport",
    "TorchVecEnv",
    "__version__",
    "check_differentiable_env",
    "make_vec_env",
]


def __getattr__(name: str) -> Any:
    # MuJoCo is an extra, and slow to import: only those who ask for it need it.
    if name == "MujocoGradient":
        from sb3_gippo.mujoco.wrapper import MujocoGradient

        return MujocoGradient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
