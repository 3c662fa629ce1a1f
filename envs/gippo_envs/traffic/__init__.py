"""Differentiable road traffic."""
