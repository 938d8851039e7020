"""Makes torch.fx take a module of this package as a leaf in place of tracing through it."""

from torch import nn


def make_leaf(module: nn.Module) -> None:
    """Makes `module` a leaf for torch.fx, unless it is of a class from elsewhere, which may change what the module does.  torch.fx asks
    a module for `__module__`, and takes those of torch.nn as leaves."""
    home = type(module).__module__
    if home.startswith(f"{__package__}."):
        module.__dict__["__module__"] = f"torch.nn:{home}"
