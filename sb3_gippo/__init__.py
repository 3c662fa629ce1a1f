"""GI-PPO for Stable-Baselines3: PPO that uses the analytic gradients of differentiable environments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gippo_envs  # noqa: F401  (registers the environments)
from sb3_gippo.checker import GradientReport, check_differentiable_env, check_differentiable_vec_env
from sb3_gippo.differences.finite import FiniteDifferenceGradient
from sb3_gippo.gippo import GIPPO
from sb3_gippo.lr import LR
from sb3_gippo.lrrp import LRRP
from sb3_gippo.pe import PE
from sb3_gippo.rollout.batched import DifferentiableVectorEnv
from sb3_gippo.rollout.step_gradient import GradientChannelError, StepGradient
from sb3_gippo.rp import RP
from sb3_gippo.rpo import RPO
from sb3_gippo.vec_env import DifferentiableVecEnv, TorchVecEnv, make_vec_env
from sb3_gippo.version import __version__

if TYPE_CHECKING:
    from sb3_gippo.jax import JaxEnv as JaxEnv
    from sb3_gippo.jax import from_brax as from_brax
    from sb3_gippo.jax import from_func_env as from_func_env
    from sb3_gippo.mujoco.wrapper import MujocoGradient as MujocoGradient
    from sb3_gippo.vec_env.jax_vec_env import JaxVecEnv as JaxVecEnv

__all__ = [
    "GIPPO",
    "LR",
    "LRRP",
    "PE",
    "RP",
    "RPO",
    "DifferentiableVecEnv",
    "DifferentiableVectorEnv",
    "FiniteDifferenceGradient",
    "GradientChannelError",
    "GradientReport",
    "StepGradient",
    "TorchVecEnv",
    "__version__",
    "check_differentiable_env",
    "check_differentiable_vec_env",
    "make_vec_env",
]


# MuJoCo and JAX are extras, and slow to import: only those who ask for what needs them need them.
LAZY = {
    "MujocoGradient": "sb3_gippo.mujoco.wrapper",
    "JaxEnv": "sb3_gippo.jax",
    "JaxVecEnv": "sb3_gippo.vec_env.jax_vec_env",
    "from_brax": "sb3_gippo.jax",
    "from_func_env": "sb3_gippo.jax",
}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
