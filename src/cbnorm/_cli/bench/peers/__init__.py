"""Who is measured beside cbnorm: one file a peer, named as the package it stands for."""

from importlib.util import find_spec

from cbnorm._cli.bench.peers.jax import Jax
from cbnorm._cli.bench.peers.numba import Numba
from cbnorm._cli.bench.peers.numpy import NumPy
from cbnorm._cli.bench.peers.onnxruntime import OnnxRuntime
from cbnorm._cli.bench.peers.sklearn import Sklearn
from cbnorm._cli.bench.peers.torch import Torch

PEERS = {peer.name: peer for peer in (NumPy, Torch, Jax, Numba, Sklearn, OnnxRuntime)}


def installed_peers():
    """Names of the peers that can be imported here."""
    return [name for name, peer in PEERS.items() if all(map(find_spec, peer.needs or (name,)))]
