"""Where threads stand: Python's frames, library calls, the kernel's waits."""
