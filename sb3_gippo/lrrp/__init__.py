from sb3_gippo.lrrp.lrrp import LRRP

__all__ = ["LRRP"]
