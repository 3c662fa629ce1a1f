from sb3_gippo.baselines.rp import RP

__all__ = ["RP"]
