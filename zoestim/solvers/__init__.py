"""Solvers to learn through: what is built in, and what others must keep to."""

from zoestim.solvers._protocol import FunctionSolver, Solver, as_solver, simulate
from zoestim.solvers._wake import WakeFlow2D

__all__ = ["FunctionSolver", "Solver", "WakeFlow2D", "as_solver", "simulate"]
