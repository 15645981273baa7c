"""Sessions as users hold them: typed variables, programs and notes that outlive the kernel."""
