"""The loops of the peer `numba`, as one writes them for Numba, without tricks; sums are float64.

Batch normalization of (rows, channels) is split in chunks of rows, that of (outer, channels, inner) by
channel; layer, group and RMS normalization by row, a row being what shares a mean.
"""

import numpy as np


def compile_loops(numba, parallel, eps, num_chunks):
    """The loops by name, compiled when first called; the last argument of each is what it writes."""
    prange, jit = numba.prange, numba.njit(parallel=parallel, fastmath=True)

    @jit
    def columns_normalize(x, mean, inv_std, gamma, beta, y):
        scale, mean = (gamma * inv_std).astype(x.dtype), mean.astype(x.dtype)
        for i in prange(x.shape[0]):
            for j in range(x.shape[1]):
                y[i, j] = (x[i, j] - mean[j]) * scale[j] + beta[j]

    @jit
    def columns_train(x, gamma, beta, y):
        rows, channels = x.shape
        sums, squares = np.zeros((num_chunks, channels)), np.zeros((num_chunks, channels))
        for chunk in prange(num_chunks):
            for i in range(chunk * rows // num_chunks, (chunk + 1) * rows // num_chunks):
                for j in range(channels):
                    sums[chunk, j] += x[i, j]
        mean = sums.sum(axis=0) / rows
        for chunk in prange(num_chunks):
            for i in range(chunk * rows // num_chunks, (chunk + 1) * rows // num_chunks):
                for j in range(channels):
                    squares[chunk, j] += (x[i, j] - mean[j]) ** 2
        inv_std = 1 / np.sqrt(squares.sum(axis=0) / rows + eps)
        columns_normalize(x, mean, inv_std, gamma, beta, y)

    @jit
    def columns_backward(dout, x, mean, inv_std, gamma, dx):
        rows, channels = x.shape
        sums, along_xhat = np.zeros((num_chunks, channels)), np.zeros((num_chunks, channels))
        for chunk in prange(num_chunks):
            for i in range(chunk * rows // num_chunks, (chunk + 1) * rows // num_chunks):
                for j in range(channels):
                    sums[chunk, j] += dout[i, j]
                    along_xhat[chunk, j] += dout[i, j] * (x[i, j] - mean[j])
        dbeta, dgamma = sums.sum(axis=0), along_xhat.sum(axis=0) * inv_std
        scale = (gamma * inv_std).astype(x.dtype)
        shift, slope = (dbeta / rows).astype(x.dtype), (dgamma * inv_std / rows).astype(x.dtype)
        mean = mean.astype(x.dtype)
        for i in prange(rows):
            for j in range(channels):
                dx[i, j] = scale[j] * (dout[i, j] - shift[j] - (x[i, j] - mean[j]) * slope[j])
        return dx, dgamma, dbeta

    @jit
    def planes_normalize(x, mean, inv_std, gamma, beta, y):
        outer, channels, inner = x.shape
        scale, mean = (gamma * inv_std).astype(x.dtype), mean.astype(x.dtype)
        for row in prange(outer * channels):
            n, j = row // channels, row % channels
            for k in range(inner):
                y[n, j, k] = (x[n, j, k] - mean[j]) * scale[j] + beta[j]

    @jit
    def planes_train(x, gamma, beta, y):
        outer, channels, inner = x.shape
        mean, inv_std = np.empty(channels), np.empty(channels)
        for j in prange(channels):
            total = square = 0.0
            for n in range(outer):
                for k in range(inner):
                    total += x[n, j, k]
            mean[j] = total / (outer * inner)
            for n in range(outer):
                for k in range(inner):
                    square += (x[n, j, k] - mean[j]) ** 2
            inv_std[j] = 1 / np.sqrt(square / (outer * inner) + eps)
        planes_normalize(x, mean, inv_std, gamma, beta, y)

    @jit
    def planes_backward(dout, x, mean, inv_std, gamma, dx):
        outer, channels, inner = x.shape
        dgamma, dbeta = np.empty(channels), np.empty(channels)
        for j in prange(channels):
            total = along_xhat = 0.0
            for n in range(outer):
                for k in range(inner):
                    total += dout[n, j, k]
                    along_xhat += dout[n, j, k] * (x[n, j, k] - mean[j])
            dbeta[j], dgamma[j] = total, along_xhat * inv_std[j]
            center, scale = x.dtype.type(mean[j]), x.dtype.type(gamma[j] * inv_std[j])
            shift = x.dtype.type(total / (outer * inner))
            slope = x.dtype.type(dgamma[j] * inv_std[j] / (outer * inner))
            for n in range(outer):
                for k in range(inner):
                    dx[n, j, k] = scale * (dout[n, j, k] - shift - (x[n, j, k] - center) * slope)
        return dx, dgamma, dbeta

    @jit
    def layer_forward(x, gamma, beta, y):
        rows, width = x.shape
        for i in prange(rows):
            total = square = 0.0
            for j in range(width):
                total += x[i, j]
            mean = total / width
            for j in range(width):
                square += (x[i, j] - mean) ** 2
            center, scale = x.dtype.type(mean), x.dtype.type(1 / np.sqrt(square / width + eps))
            for j in range(width):
                y[i, j] = (x[i, j] - center) * scale * gamma[j] + beta[j]

    @jit
    def layer_backward(dout, x, mean, inv_std, gamma, dx):
        rows, width = x.shape
        dgammas, dbetas = np.zeros((num_chunks, width)), np.zeros((num_chunks, width))
        for chunk in prange(num_chunks):
            for i in range(chunk * rows // num_chunks, (chunk + 1) * rows // num_chunks):
                center, scale = x.dtype.type(mean[i]), x.dtype.type(inv_std[i])
                total = along_xhat = 0.0
                for j in range(width):
                    xhat, dxhat = (x[i, j] - center) * scale, dout[i, j] * gamma[j]
                    total += dxhat
                    along_xhat += dxhat * xhat
                    dgammas[chunk, j] += dout[i, j] * xhat
                    dbetas[chunk, j] += dout[i, j]
                shift, slope = x.dtype.type(total / width), x.dtype.type(along_xhat / width)
                for j in range(width):
                    xhat = (x[i, j] - center) * scale
                    dx[i, j] = scale * (dout[i, j] * gamma[j] - shift - xhat * slope)
        return dx, dgammas.sum(axis=0), dbetas.sum(axis=0)

    @jit
    def group_forward(x, gamma, beta, y):  # x (rows, channels of a group, inner), gamma (groups, these)
        rows, channels, inner = x.shape
        for i in prange(rows):
            total = square = 0.0
            for j in range(channels):
                for k in range(inner):
                    total += x[i, j, k]
            mean = total / (channels * inner)
            for j in range(channels):
                for k in range(inner):
                    square += (x[i, j, k] - mean) ** 2
            center, inv_std = x.dtype.type(mean), 1 / np.sqrt(square / (channels * inner) + eps)
            for j in range(channels):
                scale, shift = x.dtype.type(gamma[i % len(gamma), j] * inv_std), beta[i % len(gamma), j]
                for k in range(inner):
                    y[i, j, k] = (x[i, j, k] - center) * scale + shift

    @jit
    def group_backward(dout, x, mean, inv_std, gamma, dx):
        rows, channels, inner = x.shape
        groups = len(gamma)
        dgammas, dbetas = np.empty((rows, channels)), np.empty((rows, channels))
        for i in prange(rows):
            center, scale = x.dtype.type(mean[i]), x.dtype.type(inv_std[i])
            total = along_xhat = 0.0
            for j in range(channels):
                dgamma = dbeta = 0.0
                for k in range(inner):
                    dbeta += dout[i, j, k]
                    dgamma += dout[i, j, k] * (x[i, j, k] - center)
                dgammas[i, j], dbetas[i, j] = dgamma * scale, dbeta
                total += dbeta * gamma[i % groups, j]
                along_xhat += dgamma * scale * gamma[i % groups, j]
            shift = x.dtype.type(total / (channels * inner))
            slope = x.dtype.type(along_xhat / (channels * inner)) * scale
            for j in range(channels):
                for k in range(inner):
                    dxhat = dout[i, j, k] * gamma[i % groups, j]
                    dx[i, j, k] = scale * (dxhat - shift - (x[i, j, k] - center) * slope)
        shape = (rows // groups, groups, channels)
        return dx, dgammas.reshape(shape).sum(axis=0), dbetas.reshape(shape).sum(axis=0)

    @jit
    def rms_forward(x, gamma, y):
        rows, width = x.shape
        for i in prange(rows):
            square = 0.0
            for j in range(width):
                square += x[i, j] * x[i, j]
            scale = x.dtype.type(1 / np.sqrt(square / width + eps))
            for j in range(width):
                y[i, j] = x[i, j] * scale * gamma[j]

    return {name: loop for name, loop in locals().items() if hasattr(loop, "py_func")}
