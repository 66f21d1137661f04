"""SolverInTheLoop, Sec. 6.2 and App. H: learn a correction through a solver without gradients."""

from __future__ import annotations

import json
import warnings
from os import PathLike
from typing import Any, Self

import numpy as np
from safetensors.torch import save_file
from sklearn.base import RegressorMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from zoestim._loop_data import as_trajectories, rows_of
from zoestim._loop_fit import fit
from zoestim._loop_parameters import LoopParameters
from zoestim._loop_score import mean_error_score
from zoestim.evaluation import Patience
from zoestim.rollouts import RollOut, roll_out
from zoestim.solvers import Simulations


class SolverInTheLoop(RegressorMixin, LoopParameters):
    r"""Corrector that is trained through a solver which can only be asked for the next state.

    A solver on a coarse grid makes an error in each step. A network that corrects its states,
    step by step, has to be trained on what becomes of the corrections many steps later, and so
    through the solver: ``min sum_t |T(C(P(s_t))) - s_{t+1}|²`` over roll-outs of `n_unroll` steps,
    Eq. (A3). No gradient of the solver is needed: it is a program, a process or a service.

    Parameters
    ----------
    solver : solver or callable
        See :class:`zoestim.solvers.Solver`; a function ``(state, conditions) -> state`` will do.
        :func:`zoestim.solvers.check_solver` tells whether it can be learned through.
    corrector : nn.Module class, factory, instance or None, default=None
        From features (n, n_features + n_conditions, \*grid), in units of `scale_`, to their
        correction (n, n_features, \*grid). None is :class:`zoestim.models.CorrectorCNN`;
        ``corrector__hidden=(32, 64)`` sets its widths. A class or factory gets ``n_channels``,
        ``n_conditions``, ``n_dims`` and ``zero_init`` where its signature names them; an instance
        is copied.
    n_unroll : int, default=8
        The steps of a roll-out. The paper takes 16.
    unroll_schedule : tuple of int or None, default=None
        Lengths that take the place of `n_unroll`, one after the other, in equal parts of the fit,
        such as ``(2, 4, 8)``.
    mode : {"sol", "non", "nog", "ste"}, default="sol"
        What is trained on:

        - ``"sol"``: roll-outs, with the solver's gradient as `gradient` finds it;
        - ``"non"``: single steps, for which no gradient of the solver is needed;
        - ``"nog"``: roll-outs through which no gradient passes the solver;
        - ``"ste"``: roll-outs, with the identity in place of the solver's Jacobian.

        The last three are baselines, and cost no queries but the roll-outs themselves.
    gradient : str or strategy object, default="auto"
        - ``"cge"``: differences of the corrector's weights, sparse, as in the paper;
        - ``"rge"``, or a strategy object: see :class:`ZOClassifier`;
        - ``"solver-vjp"``: differences at the solver's input; autograd goes through the corrector,
          which is no black box. Gives all weights their slope, for a solver step a number of the
          state and step of the roll-out;
        - ``"auto"``: whichever of these takes less time a step: for n numbers of a state and k
          queried weights, ``"solver-vjp"`` if ``n * solver < k * (solver + corrector)``. The two
          are timed where n is above k; `gradient_` and `gradient_reason_` tell;
        - ``"autograd"``: through a solver of torch tensors (FO-SOL), to compare with.
    smoothing : float or "auto", default="auto"
        The finite-difference step: of a weight, or with ``"solver-vjp"`` of a state in units of
        `scale_`. ``"auto"`` is 1e-4 of a weight with the forward scheme and 1e-3 with the central
        one (1e-6 and 1e-4 in float64), and 1e-3 of a state (1e-5). The paper's 5e-3 is too coarse
        for roll-outs of 16 steps.
    scheme, n_directions, n_pruning_queries, warmup_epochs, update
        See :class:`ZOClassifier`.
    sparsity, pruning, mask_interval
        See :class:`ZOClassifier`; by default a twentieth of each layer's weights is queried, others
        in each batch. Not used with ``"solver-vjp"``.
    optimizer : torch.optim.Optimizer class, default=torch.optim.Adam
        The optimizer; ``optimizer__betas=...`` and the like are passed on.
    lr : float, default=1e-3
        Its learning rate.
    lr_schedule : {"cosine", "constant"} or callable, default="cosine"
        See :class:`ZOClassifier`.
    max_epochs : int, default=1
        In an epoch each frame that has enough frames behind it starts one roll-out.
    batch_size : int, default=3
        Roll-outs a step.
    max_queries : int or None, default=None
        The budget. A query is a roll-out of the batch at some weights; with ``"solver-vjp"`` also
        a step of the solver at some states. `n_solver_steps_` counts what both have in common.
        The first step behind each frame, the timing of ``gradient="auto"`` and the roll-outs that
        judge the fit are no queries.
    scaler : {"std"} or None, default="std"
        The unit of each channel: its standard deviation over the frames, or 1.
    condition_channels : bool, default=True
        Whether the corrector sees the conditions: numbers as constant channels, fields on the grid
        as they are, in units of their standard deviation over the simulations.
    zero_init : bool, default=True
        Whether the corrector begins by correcting nothing, where it is built here.
    check_gradient : bool, default=True
        Whether to compare two finite-difference steps before training, with a warning where they
        disagree. The queries count: twice about 32 coordinates, or twice the `n_directions`.
    early_stopping, validation_fraction, n_iter_no_change, tol
        See :class:`ZOClassifier`; whole simulations are held out.
    on_failure : {"reject", "penalize", "raise"}, default="reject"
        What a query does that raises, hangs or gives no finite loss once `max_retries` are used up:
        count as if it changed nothing; add `failure_penalty` times the loss; end the fit. More than
        half of the queries of a step end it in any case, and so does a roll-out at the current
        weights; what was learned is kept.
    failure_penalty : float, default=10
        See `on_failure`. With ``"solver-vjp"`` a query has an inner product with the solver's
        result for a loss, and what counts is its absolute value.
    solver_batch : int or None, default=None
        The most simulations that a worker asks about together. None is 128, or 24 where the solver
        takes one by one.
    query_timeout, max_retries, n_repeats, journal_queries, n_jobs, backend, device
        See :class:`ZOClassifier`.
    feature_reuse, precision, memory_budget, checkpoint, callbacks
        See :class:`ZOClassifier`. A checkpoint needs a `random_state`, and a `gradient` by name. It
        does not notice that the solver itself has changed.
    warm_start : bool, default=False
        Whether `fit` goes on from the last fit. Start from another corrector, such as one that was
        trained with ``mode="non"``, by ``corrector=other.corrector_``.
    random_state : int, RandomState instance or None, default=None
        Determines initialisation, batches, coordinate sets and directions.
    verbose : int, default=0
        As in :class:`ZOClassifier`.
    **kwargs
        ``corrector__x`` and ``optimizer__x``: passed on.

    Attributes
    ----------
    corrector_ : nn.Module
        The trained corrector.
    scale_ : ndarray of shape (n_features,)
        The unit of each channel of the features.
    condition_scale_ : dict of str to float
        The unit of each condition that the corrector sees.
    gradient_, gradient_reason_ : str
        The gradient that was taken, and why. For the baselines ``"autograd"``.
    gradient_check_ : GradientCheck or None
        What the comparison of two steps found: `steps`, `cosine`, `difference`, `n_queries`.
    baseline_score_, corrected_score_ : float
        The scores of the bare solver and with the correction, of roll-outs of up to 100 steps from
        the initial states, of the simulations that early stopping held out, else of all.
    n_features_in_ : int
        The channels of a state.
    grid_shape_ : tuple of int
        The shape of its grid.
    n_updates_ : int
        Training steps.
    n_queries_ : int
        Queries, see `max_queries`.
    n_solver_steps_ : int
        Steps of one simulation that the solver was asked for, by all that a fit does; those
        before it went on from a checkpoint count.
    n_failed_queries_ : int
        Queries that failed and were rejected or penalized.
    fit_time_solver_, fit_time_network_, fit_time_other_ : float
        Seconds in the solver, in the corrector and around both while gradients were estimated, and
        in all else; the first two summed over workers. What went before a checkpoint is left out.
    trainer_ : estimator
        What trained it.
    n_iter_, history_, loss_curve_, layer_ratios_, net_, query_log_, feature_reuse_
        As of :class:`ZOClassifier`.
    termination_condition_ : str
        As of :class:`ZOClassifier`.

    See Also
    --------
    RolloutDisplay : Shows roll-outs with and without correction beside the truth.
    ErrorCurveDisplay : Their errors over the steps.

    Notes
    -----
    A step is ``p = solver.step(s)``, then ``s = solver.apply_correction(p, c)`` with the correction
    ``c = scale * corrector(to_features(p) / scale, conditions)``. The loss is the mean square of
    the error in units of the scales. The first step of each roll-out does not depend on the
    weights; it is taken once for each frame. A solver may not depend on time but through its
    state.

    ``"non"`` is the better choice where one step tells all: smooth problems with dense frames and
    a large corrector. Roll-outs pay where corrections that are right for one step drift off.

    References
    ----------
    .. [1] Chen et al., DeepZero, ICLR 2024, https://arxiv.org/abs/2310.02025, Sec. 6.2, App. H.
    .. [2] Um, Brand, Fei, Holl, Thuerey, Solver-in-the-loop: learning from differentiable physics
       to interact with iterative PDE-solvers, NeurIPS 2020.

    Examples
    --------
    >>> from zoestim import SolverInTheLoop
    >>> from zoestim.solvers import Burgers1D, Simulations, simulate
    >>> fine, coarse = Burgers1D(n_cells=64), Burgers1D(n_cells=16, order=1)
    >>> states, viscosity = fine.initial_states(4, random_state=0), [0.01, 0.02, 0.03, 0.05]
    >>> truth = simulate(fine, states, {"viscosity": viscosity}, n_steps=20)
    >>> def coarsen(states):
    ...     return states.reshape(*states.shape[:-1], 16, 4).mean(-1)
    >>> X, y = Simulations(coarsen(states), viscosity=viscosity), coarsen(truth)
    >>> loop = SolverInTheLoop(coarse, n_unroll=4, max_epochs=2, lr=3e-3, random_state=0)
    >>> loop = loop.fit(X[:3], y[:3])
    >>> loop.gradient_, loop.predict(X[3:]).shape
    ('solver-vjp', (1, 20, 1, 16))
    >>> bool(loop.corrected_score_ > loop.baseline_score_)
    True
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any) -> Self:
        """Learn a correction from trajectories.

        Parameters
        ----------
        X : Simulations, array-like of shape (n_simulations, n_channels, *grid) or list of dicts
            Initial states, with conditions if there are any.
        y : array-like of shape (n_simulations, n_steps, n_channels, *grid) or list of arrays
            The true states after each step, the initial ones not among them. A list may hold
            arrays with different numbers of steps.

        Returns
        -------
        self : SolverInTheLoop
            After an error in mid-training too, the fitted attributes hold what was learned.

        Raises
        ------
        QueryError
            If a roll-out at the current weights fails, or more than half of the queries of a step.
        ValueError, TypeError
            If a parameter or the data cannot be used; the message says what to pass.
        """
        continued = self.warm_start and hasattr(self, "trainer_")
        fit(self, X, y, continued=continued, epochs=self.max_epochs)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any) -> Self:
        """Train for one epoch at a constant learning rate, going on where the last call ended.

        With an `unroll_schedule`, each call goes through the whole of it.

        Parameters
        ----------
        X, y
            As in :meth:`fit`. Units, such as `scale_`, stay those of the first call.

        Returns
        -------
        self : SolverInTheLoop
        """
        fit(self, X, y, continued=hasattr(self, "trainer_"), epochs=None)
        return self

    def predict(
        self,
        X: Any,
        n_steps: int | None = None,
        correct: bool = True,
        return_correction: bool = False,
    ) -> Any:
        """Roll simulations out.

        Parameters
        ----------
        X : Simulations, array-like of shape (n_simulations, n_channels, *grid) or list of dicts
            Initial states, with the conditions of the fit.
        n_steps : int, default=None
            How many steps; by default as many as the longest trajectory of the fit has.
        correct : bool, default=True
            Whether each step of the solver is corrected; False gives the bare solver.
        return_correction : bool, default=False
            Whether to return what was added, too.

        Returns
        -------
        ndarray of shape (n_simulations, n_steps, n_channels, *grid)
            The states after each step. From where a simulation fails on they are NaN, with a
            warning.
        ndarray of shape (n_simulations, n_steps, n_features, *grid)
            The corrections, with `return_correction`.
        """
        found = self._roll_out(X, n_steps, correct)
        return (found.states, found.corrections) if return_correction else found.states

    def score(self, X: Any, y: Any) -> float:
        """Return minus the mean absolute error of corrected roll-outs, over all frames.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.

        Returns
        -------
        float
            Minus infinity if a roll-out fails.
        """
        simulations, trajectories = as_trajectories(X, y)
        found = self._roll_out(simulations, max(map(len, trajectories)), True)
        return mean_error_score(found.states, trajectories)

    def save_corrector(self, path: str | PathLike) -> None:
        """Write the corrector's tensors to a safetensors file, to be used anywhere.

        Parameters
        ----------
        path : str or path-like
            The file. Its metadata hold, as JSON, ``scale``, by which features are divided and
            corrections multiplied, channel by channel, and ``condition_scale``, by which the
            conditions are divided that follow the features as channels, in that order.
        """
        check_is_fitted(self)
        state = self.corrector_.state_dict()
        # Clones: in a file tensors share no memory, as tied weights do.
        tensors = {name: value.contiguous().cpu().clone() for name, value in state.items()}
        metadata = {
            "scale": json.dumps(self.scale_.tolist()),
            "condition_scale": json.dumps(self.condition_scale_),
        }
        save_file(tensors, path, metadata=metadata)

    def _roll_out(self, X: Any, n_steps: int | None, correct: bool) -> RollOut:
        check_is_fitted(self)
        n_steps = self._n_steps if n_steps is None else n_steps
        if not isinstance(n_steps, int | np.integer) or n_steps < 1:
            raise ValueError(f"n_steps must be an integer of at least 1; got {n_steps!r}.")
        unrolled = self.trainer_.module_
        rows, patience = rows_of(unrolled, Simulations.of(X)), self._patience()
        found = roll_out(unrolled, rows, int(n_steps), correct=correct, patience=patience)
        if found.errors:
            first = min(found.errors)
            warnings.warn(
                f"{len(found.errors)} of {len(rows)} simulations failed and are NaN from there on; "
                f"the first, simulation {first}, at {found.errors[first]}",
                stacklevel=3,
            )
        return found

    def _patience(self) -> Patience:
        return Patience(self.query_timeout, self.max_retries)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "trainer_")

    def __sklearn_tags__(self) -> Tags:
        """Say that states have more than two dimensions, and targets too."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.target_tags.multi_output = True
        return tags
