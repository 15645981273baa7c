"""Whose turn it is: the queue, the places that are lent, and the books of what was asked for."""
