"""A correction through a solver, Sec. 6.2 and App. H: roll-outs, and how they are learned from."""

from zoestim.rollouts._box import SolverBox
from zoestim.rollouts._choice import GradientCheck, check_step, takes_less
from zoestim.rollouts._curriculum import Curriculum
from zoestim.rollouts._roll_out import RollOut, roll_out
from zoestim.rollouts._rows import Rows
from zoestim.rollouts._solver_steps import SolverSteps
from zoestim.rollouts._step import UnrolledStep, n_asked
from zoestim.rollouts._unrolled import Unrolled, n_channels
from zoestim.rollouts._windows import Windows

__all__ = [
    "Curriculum",
    "GradientCheck",
    "RollOut",
    "Rows",
    "SolverBox",
    "SolverSteps",
    "Unrolled",
    "UnrolledStep",
    "Windows",
    "check_step",
    "n_asked",
    "n_channels",
    "roll_out",
    "takes_less",
]
