"""Population statistics of a whole data set in place of a layer's moving ones: precise batch normalization."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from cbnorm._arrays import as_input, check_flag, shown
from cbnorm.layers import BatchNorm
from cbnorm.population import PopulationStats


def recompute_stats(layer: BatchNorm, batches: Iterable[Any], *, weighted: bool = False) -> None:
    """Replace the moving statistics of a layer by those of a whole data set (precise batch normalization).

    Parameters
    ----------
    layer : BatchNorm
        Its `axis` and `ddof` hold; its mode does not matter, and a `frozen` one changes too.
    batches : iterable of array_like
        What the layer is given, batch by batch. Each value counts once, whatever the sizes; batches may be empty.
    weighted : bool
        Whether each batch is a pair (x, weights), as `BatchNorm.forward` takes them.

    Raises
    ------
    ValueError, TypeError
        If a batch does not fit the layer, or there are no values (for ``ddof=1``, fewer than two a channel).
        The layer has not changed then, nor where the iterable itself raises.

    References
    ----------
    Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576.

    Examples
    --------
    >>> import numpy as np, cbnorm
    >>> layer = cbnorm.BatchNorm(1)
    >>> cbnorm.recompute_stats(layer, [np.array([[1.0], [2.0]]), np.array([[6.0]])])
    >>> layer.moving_mean, layer.moving_var
    (array([3.]), array([4.66666667]))
    """
    if not isinstance(layer, BatchNorm):
        raise TypeError(f"layer: expected a BatchNorm, got {type(layer).__name__}")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected an iterable of arrays, got {type(batches).__name__}")
    population = PopulationStats(layer.axis, nonfinite=layer.nonfinite)
    paired = check_flag("weighted", weighted)
    for number, batch in enumerate(batches):
        try:
            weights = None
            if paired:
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    raise TypeError(f"batches: expected pairs (x, weights), got {shown(batch)}")
                batch, weights = batch
            x = as_input(batch, 2, layer.axis, (layer.num_channels,), "batches")
            population.update(x, weights=weights)
        except (ValueError, TypeError) as error:
            error.add_note(f"In batch {number}, counted from 0.")
            raise
    if np.any(population.count <= layer.ddof):
        raise ValueError(f"batches: expected at least {layer.ddof + 1} values a channel, got {population.count}")
    with layer._lock:
        mean, var = population.mean.copy(), population.var(layer.ddof)
        layer._replace(mean, var, population.batches)
