"""Solvers to learn through: two that are built in, and what others must keep to."""

from zoestim.solvers._burgers import Burgers1D
from zoestim.solvers._check import SolverReport, check_solver
from zoestim.solvers._exchange import SolverFailed
from zoestim.solvers._phiflow import PhiFlowSolver
from zoestim.solvers._protocol import FunctionSolver, Solver, as_solver, simulate
from zoestim.solvers._pypde import PyPDESolver
from zoestim.solvers._simulations import Simulations, split_trajectories
from zoestim.solvers._subprocess import SolverFailedWarning, SubprocessSolver
from zoestim.solvers._wake import WakeFlow2D

__all__ = [
    "Burgers1D",
    "FunctionSolver",
    "PhiFlowSolver",
    "PyPDESolver",
    "Simulations",
    "Solver",
    "SolverFailed",
    "SolverFailedWarning",
    "SolverReport",
    "SubprocessSolver",
    "WakeFlow2D",
    "as_solver",
    "check_solver",
    "simulate",
    "split_trajectories",
]
