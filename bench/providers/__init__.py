"""Who is measured: ours, torch.nn on cuDNN, loops, other libraries."""
