"""The latency model against records: fit, bottlenecks, explanations."""
