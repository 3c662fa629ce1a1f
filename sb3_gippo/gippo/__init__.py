from sb3_gippo.gippo.gippo import GIPPO
from sb3_gippo.gippo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["GIPPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
