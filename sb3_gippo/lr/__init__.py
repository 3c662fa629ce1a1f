from sb3_gippo.lr.lr import LR

__all__ = ["LR"]
