"""Rows of any shape to messages."""
