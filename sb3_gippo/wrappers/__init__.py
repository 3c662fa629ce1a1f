"""Wrappers that give environments the gradient channel, or change it; each imports what it needs only when it is used."""
