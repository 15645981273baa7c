"""Processes: identity, the guardian, the registry of runs, the sweep. Knows nothing of kernels."""
