"""Where queries are answered, Eq. (5): here, by workers, or by the ranks of a process group."""

from zoestim.backends._devices import DevicesBackend
from zoestim.backends._distributed import DistributedBackend
from zoestim.backends._joblib import JoblibBackend
from zoestim.backends._resolve import resolve_backend
from zoestim.backends._serial import Backend, SerialBackend, Unsendable, worker_name
from zoestim.backends._shares import equal_shares, guided_shares

__all__ = [
    "Backend",
    "DevicesBackend",
    "DistributedBackend",
    "JoblibBackend",
    "SerialBackend",
    "Unsendable",
    "equal_shares",
    "guided_shares",
    "resolve_backend",
    "worker_name",
]
