from sb3_gippo.checker.checker import GradientReport, check_differentiable_env

__all__ = ["GradientReport", "check_differentiable_env"]
