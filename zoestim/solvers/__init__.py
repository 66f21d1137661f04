"""Solvers to learn through: two that are built in, and what others must keep to."""

from zoestim.solvers._burgers import Burgers1D
from zoestim.solvers._check import SolverReport, check_solver
from zoestim.solvers._protocol import FunctionSolver, Solver, as_solver, simulate
from zoestim.solvers._wake import WakeFlow2D

__all__ = [
    "Burgers1D",
    "FunctionSolver",
    "Solver",
    "SolverReport",
    "WakeFlow2D",
    "as_solver",
    "check_solver",
    "simulate",
]
