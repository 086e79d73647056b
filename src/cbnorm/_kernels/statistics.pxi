# Count, mean and M2 (the sum of squared deviations from the mean) of tiles of numbers.
#
# Design
# A. The unit of work is a tile, `height` rows of `width` numbers, `stride` apart, at most BLOCK x TILE, with a
#    mean for each column; or a number of runs of neighbouring numbers, at most PIECE in all, with one mean.
# B. Each is read once, centred on a pivot taken from itself:
#        M2 = Σ(x - pivot)² - count (mean - pivot)²
#    The pivot is a row of the tile, or the mean of the first numbers. So count (mean - pivot)² is at most
#    BLOCK times M2 whatever the data, and the subtraction costs at most 7 of float64's 53 bits.
# C. Parts merge by Chan's formula. A mean is the unevaluated sum mean + mean_lo: at 1e6 standard
#    deviations one float64 would leave errors of 1e-10 in y.
# D. Four rows are added at a time: a column's sums are loaded and stored once for four numbers, and the
#    loop over columns vectorizes without reordering any sum, so every build gives the same bits. Runs are
#    seen as rows of LANES numbers.
# E. Loops of this and the other equations take each array and factor as an argument of its own, more than elsewhere:
#    `restrict` tells the compiler that arrays are apart, and it holds for arguments alone; numbers stay in registers.

cdef enum:
    TILE = 256      # most columns of a tile
    FOUR_TILES = 4 * TILE   # numbers of four of its rows
    BLOCK = 128     # most rows of a tile
    LANES = 32      # independent sums along a run: enough for every build's vectors
    PIECE = 4096    # most numbers of runs that are centred together


cdef inline const floating *beginning(const floating *values, Py_ssize_t start) noexcept nogil:
    """The numbers from `start` on; NULL stays NULL."""
    if values == NULL:
        return NULL
    return values + start


cdef inline double two_sum_error(double a, double b, double total) noexcept nogil:
    """Knuth (1969): a + b = total + error, exactly."""
    cdef double b_added = total - a
    return (a - (total - b_added)) + (b - b_added)


cdef inline void merge(
    double count,               # of the values merged so far
    double *mean,               # INOUT
    double *mean_lo,            # INOUT
    double *m2,                 # INOUT
    double other_count,         # at least 1
    double other_mean,
    double other_mean_lo,
    double other_m2,
) noexcept nogil:
    """Chan, Golub and LeVeque (1979): the moments of two sets together, from the moments of each."""
    cdef double weight = other_count / (count + other_count)
    cdef double delta = (other_mean - mean[0]) + (other_mean_lo - mean_lo[0])
    cdef double step = mean_lo[0] + delta * weight
    cdef double merged = mean[0] + step
    mean_lo[0] = two_sum_error(mean[0], step, merged)
    mean[0] = merged
    m2[0] += other_m2 + delta * delta * (count * weight)


cdef loop merge_columns(
    double count,
    double *restrict mean,                  # INOUT (width)
    double *restrict mean_lo,               # INOUT (width)
    double *restrict m2,                    # INOUT (width)
    double other_count,
    const double *restrict other_mean,      # IN (width)
    const double *restrict other_mean_lo,   # IN (width)
    const double *restrict other_m2,        # IN (width)
    Py_ssize_t width,
) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(width):
        merge(count, mean + j, mean_lo + j, m2 + j, other_count, other_mean[j], other_mean_lo[j], other_m2[j])


cdef inline void centre(
    double one_by_count, double pivot, double total, double squares,
    double *mean,               # OUT
    double *mean_lo,            # OUT
    double *m2,                 # OUT
) noexcept nogil:
    """The moments of values from the sums of their deviations from a pivot."""
    cdef double shift = total * one_by_count
    mean[0] = pivot + shift
    mean_lo[0] = two_sum_error(pivot, shift, mean[0])
    m2[0] = squares - total * shift
    if m2[0] < 0:               # by rounding; NaN stays
        m2[0] = 0


cdef inline void prefetch_rows(const floating *row, Py_ssize_t stride, Py_ssize_t width) noexcept nogil:
    """The next four rows: the processor itself looks ahead along a row, not to the piece of the next one."""
    cdef Py_ssize_t i
    for i in range(4):
        cbnorm_prefetch(row + i * stride, width * sizeof(floating))


cdef void add_deviations(
    const floating *restrict x,         # IN (height, width)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,
    const double *restrict pivot,       # IN (width)
    double *restrict total,             # INOUT (width) Σ(x - pivot)
    double *restrict squares,           # INOUT (width) Σ(x - pivot)²
    bint from_memory,                   # ask for rows ahead
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef const floating *row
    cdef double p, a, b, c, d
    for i in range(height // 4):
        row = x + 4 * i * stride
        if from_memory:
            prefetch_rows(row + 4 * stride, stride, width)
        for j in range(width):
            p = pivot[j]
            a = row[j] - p
            b = row[stride + j] - p
            c = row[2 * stride + j] - p
            d = row[3 * stride + j] - p
            total[j] += (a + b) + (c + d)
            squares[j] += (a * a + b * b) + (c * c + d * d)
    for i in range(height // 4 * 4, height):
        row = x + i * stride
        for j in range(width):
            a = row[j] - pivot[j]
            total[j] += a
            squares[j] += a * a


cdef loop column_moments(
    const floating *x,                  # IN (height, width)
    Py_ssize_t stride,
    Py_ssize_t height,                  # 1 to BLOCK
    Py_ssize_t width,                   # at most TILE
    double *restrict mean,              # OUT (width)
    double *restrict mean_lo,           # OUT (width)
    double *restrict m2,                # OUT (width)
    bint from_memory,                   # ask for rows ahead
    Storage storage,
) noexcept nogil:
    """The moments of each column of a tile; the pivots are its first row."""
    cdef Tile pivot
    cdef Tile total
    cdef Tile squares
    cdef double one_by_count = 1.0 / height
    cdef Py_ssize_t i, j
    cdef floating[FOUR_TILES] room
    cdef const floating *first = widened(x, stride, 1, width, storage, room, TILE)
    for j in range(width):
        pivot[j] = first[j]
        total[j] = 0
        squares[j] = 0
    if storage == NATIVE:
        add_deviations(x, stride, height, width, pivot, total, squares, from_memory)
    else:
        for i in range(0, height, 4):
            widened(place(x, i * stride, storage), stride, min(4, height - i), width, storage, room, TILE)
            add_deviations(room, TILE, min(4, height - i), width, pivot, total, squares, False)
    for j in range(width):
        centre(one_by_count, pivot[j], total[j], squares[j], mean + j, mean_lo + j, m2 + j)


cdef inline double sum_of_half(const double *lanes) noexcept nogil:
    """Of LANES / 2 numbers, by halving: a fixed order that vectorizes."""
    cdef double eight[8]
    cdef double four[4]
    cdef Py_ssize_t k
    for k in range(8):
        eight[k] = lanes[k] + lanes[8 + k]
    for k in range(4):
        four[k] = eight[k] + eight[4 + k]
    return (four[0] + four[2]) + (four[1] + four[3])


cdef inline double sum_of_lanes(const double *lanes) noexcept nogil:
    cdef Sixteen sixteen
    cdef Py_ssize_t k
    for k in range(16):
        sixteen[k] = lanes[k] + lanes[16 + k]
    return sum_of_half(sixteen)


cdef loop add_lanes_to(const double *lanes, double *total) noexcept nogil:
    """Not inlined: beside a second sum, Clang would add the lanes of both in pairs."""
    total[0] += sum_of_lanes(lanes)


cdef inline loop_part add_lanes(
    const floating *restrict x,         # IN (height, LANES)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t skip,                    # the first lanes do not count
    double pivot,
    double *restrict total,             # INOUT (LANES) Σ(x - pivot)
    double *restrict squares,           # INOUT (LANES) Σ(x - pivot)²
) noexcept nogil:
    """Twice four rows a turn: with four, too few loads are under way to keep the memory busy."""
    cdef Py_ssize_t i, k
    cdef const floating *row
    cdef double a, b, c, d, four, four_squares
    for i in range(height // 8):
        row = x + 8 * i * stride
        for k in range(LANES):
            a = row[k] - pivot
            b = row[stride + k] - pivot
            c = row[2 * stride + k] - pivot
            d = row[3 * stride + k] - pivot
            four = total[k] + ((a + b) + (c + d) if k >= skip else 0)
            four_squares = squares[k] + ((a * a + b * b) + (c * c + d * d) if k >= skip else 0)
            a = row[4 * stride + k] - pivot
            b = row[5 * stride + k] - pivot
            c = row[6 * stride + k] - pivot
            d = row[7 * stride + k] - pivot
            total[k] = four + ((a + b) + (c + d) if k >= skip else 0)
            squares[k] = four_squares + ((a * a + b * b) + (c * c + d * d) if k >= skip else 0)
    if height % 8 >= 4:
        row = x + height // 8 * 8 * stride
        for k in range(LANES):
            a = row[k] - pivot
            b = row[stride + k] - pivot
            c = row[2 * stride + k] - pivot
            d = row[3 * stride + k] - pivot
            total[k] += (a + b) + (c + d) if k >= skip else 0
            squares[k] += (a * a + b * b) + (c * c + d * d) if k >= skip else 0
    for i in range(height // 4 * 4, height):
        row = x + i * stride
        for k in range(LANES):
            a = row[k] - pivot
            total[k] += a if k >= skip else 0
            squares[k] += a * a if k >= skip else 0


cdef loop add_last_lanes(
    const floating *x, Py_ssize_t stride, Py_ssize_t height, Py_ssize_t skip, double pivot,
    double *total, double *squares,
) noexcept nogil:
    """Not inlined: Clang would give each of the LANES sums a register, and take them one by one."""
    add_lanes(x, stride, height, skip, pivot, total, squares)


cdef inline loop_part add_few(
    const floating *restrict x,         # IN (height, size)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t size,                    # less than LANES
    double pivot,
    double *restrict total,             # INOUT (LANES) Σ(x - pivot)
    double *restrict squares,           # INOUT (LANES) Σ(x - pivot)²
) noexcept nogil:
    cdef Py_ssize_t i, k
    cdef double a
    for i in range(height):
        for k in range(size):
            a = x[i * stride + k] - pivot
            total[k] += a
            squares[k] += a * a


cdef loop run_moments(
    const floating *x,                  # IN (height, size)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t size,
    bint centred,                       # false: the mean is taken to be 0, and m2 is Σ x²
    double *mean,                       # OUT
    double *mean_lo,                    # OUT
    double *m2,                         # OUT
) noexcept nogil:
    """The moments of all numbers of `height` runs, together 1 to PIECE."""
    cdef Lanes total
    cdef Lanes squares
    cdef double pivot = x[0] if centred else 0
    cdef Py_ssize_t i, k, first = min(size, <Py_ssize_t>LANES), whole = size // LANES
    for k in range(LANES):
        total[k] = 0
        squares[k] = 0
    if centred and height * size > BLOCK:       # the mean of more numbers keeps the bound of B
        for k in range(first):
            squares[k] = x[k] - pivot
        pivot += sum_of_lanes(squares) / first
        for k in range(first):
            squares[k] = 0
    if height == 1:
        add_lanes(x, LANES, whole, 0, pivot, total, squares)
    else:
        for i in range((height + 3) // 4):
            for k in range(whole):
                add_lanes(x + 4 * i * stride + k * LANES, stride, min(4, height - 4 * i), 0, pivot, total, squares)
    if whole == 0:
        add_few(x, stride, height, size, pivot, total, squares)
    elif size > whole * LANES:          # the last LANES numbers, of which some were counted
        add_last_lanes(x + size - LANES, stride, height, (whole + 1) * LANES - size, pivot, total, squares)
    centre(1.0 / (height * size), pivot, sum_of_lanes(total) if centred else 0, sum_of_lanes(squares),
           mean, mean_lo, m2)
