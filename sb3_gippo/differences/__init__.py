"""The gradient channel by finite differences of an environment's own step."""
