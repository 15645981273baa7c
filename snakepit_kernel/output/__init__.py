"""How results, displays and progress appear where the code was called."""
