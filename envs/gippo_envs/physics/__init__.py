"""Differentiable mechanics."""
