from sb3_gippo.vec_env.make import make_vec_env
from sb3_gippo.vec_env.torch_vec_env import TorchVecEnv

__all__ = ["TorchVecEnv", "make_vec_env"]
