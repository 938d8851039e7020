"""An operator for tritonbench: copy this folder to tritonbench/operators/rnn of its checkout."""

from .operator import Operator as Operator
