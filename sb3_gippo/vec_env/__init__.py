from sb3_gippo.vec_env.differentiable_vec_env import DifferentiableVecEnv
from sb3_gippo.vec_env.make import make_vec_env

TorchVecEnv = DifferentiableVecEnv
"""the name from before it took other environments than torch's"""

__all__ = ["DifferentiableVecEnv", "TorchVecEnv", "make_vec_env"]
