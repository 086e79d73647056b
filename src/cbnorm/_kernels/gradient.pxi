# dbeta = Σ dout;  dgamma = Σ dout·xhat, with xhat = ((x - mean_hi) - mean_lo)·inv_std;
# dx = (gamma·inv_std / M) (M·dout - xhat·dgamma - dbeta), computed as
# dx = ((dout - (x - mean)·slope) - offset)·scale,
#      with slope = inv_std·dgamma / M, offset = dbeta / M, scale = gamma·inv_std.


cdef inline floating normalized_input(
    floating x, floating mean_hi, floating mean_lo, floating inv_std
) noexcept nogil:
    return ((x - mean_hi) - mean_lo) * inv_std


cdef void add_gradients(
    const floating *restrict dout,      # IN (height, width)
    const floating *restrict x,         # IN (height, width), or NULL: only dout is summed
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,
    const floating *restrict mean_hi,   # IN (width), as are the next two
    const floating *restrict mean_lo,
    const floating *restrict inv_std,
    double *restrict total,             # INOUT (width) Σ dout
    double *restrict product,           # INOUT (width) Σ dout·xhat
) noexcept nogil:
    """Sums over the rows of a tile: four rows in the array's dtype, all else in float64."""
    cdef Py_ssize_t i, j
    cdef const floating *row
    cdef const floating *grad
    cdef floating a, b, c, d, ax, bx, cx, dx
    for i in range(height // 4):
        grad = dout + 4 * i * stride
        row = x + 4 * i * stride
        if x == NULL:
            for j in range(width):
                total[j] += (grad[j] + grad[stride + j]) + (grad[2 * stride + j] + grad[3 * stride + j])
            continue
        for j in range(width):
            a = grad[j]
            b = grad[stride + j]
            c = grad[2 * stride + j]
            d = grad[3 * stride + j]
            ax = normalized_input(row[j], mean_hi[j], mean_lo[j], inv_std[j])
            bx = normalized_input(row[stride + j], mean_hi[j], mean_lo[j], inv_std[j])
            cx = normalized_input(row[2 * stride + j], mean_hi[j], mean_lo[j], inv_std[j])
            dx = normalized_input(row[3 * stride + j], mean_hi[j], mean_lo[j], inv_std[j])
            total[j] += (a + b) + (c + d)
            product[j] += (a * ax + b * bx) + (c * cx + d * dx)
    for i in range(height // 4 * 4, height):
        grad = dout + i * stride
        for j in range(width):
            total[j] += grad[j]
        if x != NULL:
            row = x + i * stride
            for j in range(width):
                product[j] += grad[j] * normalized_input(row[j], mean_hi[j], mean_lo[j], inv_std[j])


cdef void add_tile_gradients(
    const floating *dout,               # IN (height, width)
    const floating *x,                  # IN (height, width), or NULL
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,                   # at most TILE
    floating mean_hi, floating mean_lo, floating inv_std,
    double *total,                      # INOUT Σ dout
    double *product,                    # INOUT Σ dout·xhat
) noexcept nogil:
    """Sums over a tile with one mean."""
    cdef floating hi[TILE]
    cdef floating lo[TILE]
    cdef floating scale[TILE]
    cdef double totals[TILE]
    cdef double products[TILE]
    cdef Py_ssize_t j
    for j in range(width):
        hi[j] = mean_hi
        lo[j] = mean_lo
        scale[j] = inv_std
        totals[j] = 0
        products[j] = 0
    add_gradients(dout, x, stride, height, width, &hi[0], &lo[0], &scale[0], totals, products)
    total[0] += sum_in_place(totals, width)
    product[0] += sum_in_place(products, width)


cdef void add_run_gradients(
    const floating *restrict dout,      # IN (size)
    const floating *restrict x,         # IN (size), or NULL: only dout is summed
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating inv_std,
    double *total,                      # INOUT Σ dout
    double *product,                    # INOUT Σ dout·xhat
) noexcept nogil:
    """Sums over neighbouring numbers with one mean, seen as rows of LANES."""
    cdef double totals[LANES]
    cdef double products[LANES]
    cdef floating a, b, c, d
    cdef Py_ssize_t i, k, rows = size // LANES, left = size % LANES
    cdef const floating *row
    cdef const floating *grad
    for k in range(LANES):
        totals[k] = 0
        products[k] = 0
    for i in range(rows // 4):
        grad = dout + 4 * i * LANES
        for k in range(LANES):
            totals[k] += (grad[k] + grad[LANES + k]) + (grad[2 * LANES + k] + grad[3 * LANES + k])
        if x != NULL:
            row = x + 4 * i * LANES
            for k in range(LANES):
                a = grad[k] * normalized_input(row[k], mean_hi, mean_lo, inv_std)
                b = grad[LANES + k] * normalized_input(row[LANES + k], mean_hi, mean_lo, inv_std)
                c = grad[2 * LANES + k] * normalized_input(row[2 * LANES + k], mean_hi, mean_lo, inv_std)
                d = grad[3 * LANES + k] * normalized_input(row[3 * LANES + k], mean_hi, mean_lo, inv_std)
                products[k] += (a + b) + (c + d)
    for i in range(rows // 4 * 4, rows + (left > 0)):
        grad = dout + i * LANES
        row = x + i * LANES
        for k in range(LANES if i < rows else left):
            totals[k] += grad[k]
        if x != NULL:
            for k in range(LANES if i < rows else left):
                products[k] += grad[k] * normalized_input(row[k], mean_hi, mean_lo, inv_std)
    total[0] += sum_of_lanes(totals)
    product[0] += sum_of_lanes(products)


cdef inline floating input_gradient(
    floating dout, floating x, floating mean_hi, floating mean_lo, floating scale, floating slope, floating offset
) noexcept nogil:
    return ((dout - ((x - mean_hi) - mean_lo) * slope) - offset) * scale


cdef void input_gradient_tile(
    const floating *restrict dout,      # IN (height, width)
    const floating *restrict x,         # IN (height, width)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,
    const floating *restrict mean_hi,   # IN (width), as are the next four
    const floating *restrict mean_lo,
    const floating *restrict scale,
    const floating *restrict slope,
    const floating *restrict offset,
    floating *restrict dx,              # OUT (height, width)
    Py_ssize_t dx_stride,
) noexcept nogil:
    """Each column has its own statistics. Two rows at a time share their loads."""
    cdef Py_ssize_t i, j
    cdef const floating *row
    cdef const floating *grad
    cdef floating *out
    for i in range(height // 2):
        grad = dout + 2 * i * stride
        row = x + 2 * i * stride
        out = dx + 2 * i * dx_stride
        for j in range(width):
            out[j] = input_gradient(
                grad[j], row[j], mean_hi[j], mean_lo[j], scale[j], slope[j], offset[j])
            out[dx_stride + j] = input_gradient(
                grad[stride + j], row[stride + j], mean_hi[j], mean_lo[j], scale[j], slope[j], offset[j])
    if height % 2:
        grad = dout + (height - 1) * stride
        row = x + (height - 1) * stride
        out = dx + (height - 1) * dx_stride
        for j in range(width):
            out[j] = input_gradient(grad[j], row[j], mean_hi[j], mean_lo[j], scale[j], slope[j], offset[j])


cdef void input_gradient_run(
    const floating *restrict dout,      # IN (size)
    const floating *restrict x,         # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating scale, floating slope, floating offset,
    floating *restrict dx,              # OUT (size)
) noexcept nogil:
    """One mean and scale for all."""
    cdef Py_ssize_t i
    for i in range(size):
        dx[i] = input_gradient(dout[i], x[i], mean_hi, mean_lo, scale, slope, offset)


# Where each row has its own statistics: parameter gradients down the columns, and dxhat.

cdef void add_row_gradients(
    const floating *restrict dout,      # IN (height, width)
    const floating *restrict x,         # IN (height, width)
    Py_ssize_t width,
    Py_ssize_t height,                  # at most 4
    const floating *mean_hi,            # IN (height), as are the next two
    const floating *mean_lo,
    const floating *inv_std,
    double *restrict total,             # INOUT (width) Σ dout
    double *restrict product,           # INOUT (width) Σ dout·xhat
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef floating a, b, c, d
    if height < 4:
        for i in range(height):
            for j in range(width):
                a = dout[i * width + j]
                total[j] += a
                product[j] += a * normalized_input(x[i * width + j], mean_hi[i], mean_lo[i], inv_std[i])
        return
    for j in range(width):
        a = dout[j]
        b = dout[width + j]
        c = dout[2 * width + j]
        d = dout[3 * width + j]
        total[j] += (a + b) + (c + d)
        product[j] += (
            (a * normalized_input(x[j], mean_hi[0], mean_lo[0], inv_std[0])
             + b * normalized_input(x[width + j], mean_hi[1], mean_lo[1], inv_std[1]))
            + (c * normalized_input(x[2 * width + j], mean_hi[2], mean_lo[2], inv_std[2])
               + d * normalized_input(x[3 * width + j], mean_hi[3], mean_lo[3], inv_std[3])))


cdef void multiply(
    const floating *restrict dout, const floating *restrict gamma, floating *restrict dxhat, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        dxhat[i] = dout[i] * gamma[i]


cdef void multiply_by_one(
    const floating *restrict dout, floating gamma, floating *restrict dxhat, Py_ssize_t size
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        dxhat[i] = dout[i] * gamma
