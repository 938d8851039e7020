"""`bench check` on a GPU: items, probes, what they say."""
