"""All methods by name: zoestim's settings first, then what else a user could pick."""

from benchmarks.peers import evolution, others, zoestim_methods
from benchmarks.peers.search import Method

METHODS: dict[str, Method] = {
    **zoestim_methods.METHODS,
    **others.METHODS,
    **evolution.METHODS,
}
