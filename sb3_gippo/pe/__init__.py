from sb3_gippo.pe.pe import PE

__all__ = ["PE"]
