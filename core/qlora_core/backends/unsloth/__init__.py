"""Unsloth's decoder under our step."""
