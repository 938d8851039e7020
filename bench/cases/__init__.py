"""What is measured, as data: cases and suites, their tensors, what the latency model expects of them, what others published."""
