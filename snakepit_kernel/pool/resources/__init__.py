"""Resources of workers: kernelspecs, accelerators, limits, and the machine's budget."""
