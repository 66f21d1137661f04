"""Parameters of the form ``prefix__name``, which an estimator passes on to one of its parts."""

from __future__ import annotations

from typing import Any, Self

from sklearn.base import BaseEstimator

from zoestim._modules import check_names


class PrefixedParameters(BaseEstimator):
    """Stores ``prefix__name`` parameters as they are: `clone` and grid searches see them.

    A subclass names its prefixes in `_prefixes` and keeps what its constructor gets beside its
    named parameters in its ``__dict__``.
    """

    _prefixes: tuple[str, ...] = ()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, the ``prefix__name`` ones included.

        Parameters
        ----------
        deep : bool, default=True
            Whether to add the parameters of parameters that are estimators themselves.

        Returns
        -------
        dict
        """
        return super().get_params(deep) | self._extras()

    def set_params(self, **params: Any) -> Self:
        """Set parameters, ``prefix__name`` ones included.

        Parameters
        ----------
        **params
            Names and values.

        Returns
        -------
        self : estimator
        """
        # Objects first: the others may be parameters of theirs.
        super().set_params(**{n: v for n, v in params.items() if "__" not in n})
        nested = {n: v for n, v in params.items() if "__" in n}
        known = super().get_params(deep=True).keys() & nested.keys()
        theirs = {n for n in known if n.split("__")[0] not in self._prefixes}
        super().set_params(**{n: nested[n] for n in theirs})
        self.__dict__.update({n: v for n, v in nested.items() if n not in theirs})
        return self

    def _extras(self) -> dict[str, Any]:
        """Return the stored parameters that the signature does not name."""
        named = set(self._get_param_names())
        return {
            name: value
            for name, value in vars(self).items()
            if name not in named and not name.startswith("_") and not name.endswith("_")
        }

    def _prefixed(self, prefix: str) -> dict[str, Any]:
        start = f"{prefix}__"
        extras = self._extras().items()
        return {name[len(start) :]: value for name, value in extras if name.startswith(start)}

    def _check_extras(self) -> None:
        """Refuse a parameter that no part of the estimator takes."""
        owner = type(self).__name__
        for name in self._extras():
            prefix, _, rest = name.partition("__")
            if not rest or prefix not in self._prefixes:
                check_names([name], self._get_param_names(), prefix="", owner=owner)
        if "lr" in self._prefixed("optimizer"):
            raise ValueError(f"{owner} takes the learning rate as lr; got optimizer__lr.")
