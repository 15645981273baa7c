"""The kernel: ipykernel's, with the magics loaded, reliable interrupts and a lazy debugger.

``python -m snakepit_kernel.kernel`` runs it, for notebooks and for workers alike.
"""
