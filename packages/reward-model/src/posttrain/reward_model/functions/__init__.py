"""Users' own reward functions: found by name, run in processes of their own, each item under a deadline."""

from posttrain.reward_model.functions.pool import FunctionLimits, FunctionPool
from posttrain.reward_model.functions.spec import UserFunction, function_of_file, installed_functions, is_function_spec

__all__ = [
    "FunctionLimits",
    "FunctionPool",
    "UserFunction",
    "function_of_file",
    "installed_functions",
    "is_function_spec",
]
