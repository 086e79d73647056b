# y = ((x - mean_hi) - mean_lo) * scale + shift, with scale = gamma * inv_std and shift = beta.
#
# The mean is subtracted in two parts of the array's own dtype. The first difference is exact where x is
# near the mean (Sterbenz), so no digit is lost at any offset; folding into x * a + b would lose them all.
# A constant channel has x - mean_hi = mean_lo = 0 and gives exactly beta.


cdef inline floating normalized(
    floating x, floating mean_hi, floating mean_lo, floating scale, floating shift
) noexcept nogil:
    return ((x - mean_hi) - mean_lo) * scale + shift


cdef void normalize_tile(
    const floating *restrict x,         # IN (height, width)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,
    const floating *restrict mean_hi,   # IN (width), as are the next three
    const floating *restrict mean_lo,
    const floating *restrict scale,
    const floating *restrict shift,
    floating *restrict y,               # OUT (height, width)
    Py_ssize_t y_stride,
) noexcept nogil:
    """Each column has its own mean and scale. Four rows at a time share their loads."""
    cdef Py_ssize_t i, j
    cdef const floating *row
    cdef floating *out
    for i in range(height // 4):
        row = x + 4 * i * stride
        out = y + 4 * i * y_stride
        for j in range(width):
            out[j] = normalized(row[j], mean_hi[j], mean_lo[j], scale[j], shift[j])
            out[y_stride + j] = normalized(row[stride + j], mean_hi[j], mean_lo[j], scale[j], shift[j])
            out[2 * y_stride + j] = normalized(row[2 * stride + j], mean_hi[j], mean_lo[j], scale[j], shift[j])
            out[3 * y_stride + j] = normalized(row[3 * stride + j], mean_hi[j], mean_lo[j], scale[j], shift[j])
    for i in range(height // 4 * 4, height):
        row = x + i * stride
        out = y + i * y_stride
        for j in range(width):
            out[j] = normalized(row[j], mean_hi[j], mean_lo[j], scale[j], shift[j])


cdef void normalize_run(
    const floating *restrict x,         # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating scale, floating shift,
    floating *restrict y,               # OUT (size)
) noexcept nogil:
    """One mean and scale for all."""
    cdef Py_ssize_t i
    for i in range(size):
        y[i] = normalized(x[i], mean_hi, mean_lo, scale, shift)


cdef void normalize_scaled(
    const floating *restrict x,         # IN (size)
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating inv_std,
    const floating *restrict gamma,     # IN (size)
    const floating *restrict beta,      # IN (size)
    floating *restrict y,               # OUT (size)
) noexcept nogil:
    """One mean and deviation for all, a gamma and beta for each number."""
    cdef Py_ssize_t i
    for i in range(size):
        y[i] = normalized(x[i], mean_hi, mean_lo, gamma[i] * inv_std, beta[i])
