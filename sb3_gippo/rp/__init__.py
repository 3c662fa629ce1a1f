from sb3_gippo.rp.rp import RP

__all__ = ["RP"]
