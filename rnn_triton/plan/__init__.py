"""Turns a problem into a plan: what fits on a device, what it is estimated to take, which plan is chosen, and why."""
