"""Figures that say how good results are. Depends on `core` and `ops` only."""
