"""Bundled models with their cards."""
