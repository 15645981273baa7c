"""Tools: functions that can be called by name, and what serves them in a worker."""
