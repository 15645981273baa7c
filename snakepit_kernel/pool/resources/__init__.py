"""What workers are made of and may use: kernelspecs, accelerators, limits, the machine."""
