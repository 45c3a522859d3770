"""Adapters for AWS services."""
