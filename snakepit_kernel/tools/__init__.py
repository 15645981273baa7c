"""Tools: functions that can be called by name, as their authors write and use them."""
