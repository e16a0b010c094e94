"""Hostile guests: born and sealed as any guest is, and then they attack, one door each file."""
