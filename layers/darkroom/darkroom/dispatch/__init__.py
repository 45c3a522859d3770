"""Limits, endpoint health, retries and fallback: which endpoint is called when."""
