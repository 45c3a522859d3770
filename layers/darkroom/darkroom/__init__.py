"""Darkroom's domain: what a row asks for, who may edit it, and what became of it."""
