from sb3_gippo.common.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_gippo.gippo.gippo import GIPPO

__all__ = ["GIPPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
