"""Processes: identity, the guardian, the registry of runs, the sweep; nothing about kernels."""
