"""The kernel: ipykernel's, with the magics loaded, its interrupts mended and its debugger lazy.

``python -m snakepit_kernel.kernel`` runs it, for notebooks and for workers alike.
"""
