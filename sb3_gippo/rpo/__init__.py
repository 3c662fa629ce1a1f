from sb3_gippo.rpo.rpo import RPO

__all__ = ["RPO"]
