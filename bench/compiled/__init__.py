"""What compiled kernels use, read from machine code and PTX."""
