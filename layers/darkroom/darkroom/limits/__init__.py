"""Limits, health and fallback: which endpoint is called when, and what its answer leads to."""
