"""The operators: forward and backward passes of layers and networks, differentiated and batched."""
