"""Shell sessions and background processes, in the owner's process."""
