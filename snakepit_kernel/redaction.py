"""Secrets, left out of what is written down and shown."""
