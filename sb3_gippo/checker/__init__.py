from sb3_gippo.checker.batched import check_differentiable_vec_env
from sb3_gippo.checker.checker import GradientReport, check_differentiable_env

__all__ = ["GradientReport", "check_differentiable_env", "check_differentiable_vec_env"]
