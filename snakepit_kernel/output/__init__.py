"""Results, displays and progress bars of calls, shown in the caller's process."""
