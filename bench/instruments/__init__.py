"""What measures: the clock, a function in a process of its own, a progress bar."""
