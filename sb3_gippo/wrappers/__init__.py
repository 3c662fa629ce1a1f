"""Wrappers that give environments the gradient channel; each imports what it needs only when it is used."""
