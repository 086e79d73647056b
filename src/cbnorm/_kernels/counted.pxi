# Moments where numbers count differently: each by the weight of its place, or not at all where it is NaN and left out.
#
# Design
# A. With u what a number counts and W = Σ u: mean = Σ u·x / W, m2 = Σ u·(x - mean)². What counts 0 is not read: it may
#    be NaN. Where no number counts, mean and m2 are 0, and nothing merges with them.
# B. Geometry, order of sums and merges are those of numbers that count alike, so weights of 1 give the very bits of
#    none.
# C. The pivot is a number of the largest weight in its column of the tile; or the mean of the first numbers of a piece,
#    unless they have too little of its weight. So W (mean - pivot)² is at most BLOCK times m2, as in statistics.pxi.
# D. Weights lie as (outer, inner): one for each place, whatever its channel.


cdef inline double what_counts(double weight, floating value, bint omit) noexcept nogil:
    return weight if not omit or value == value else 0


cdef inline double deviation(floating value, double pivot, double counts) noexcept nogil:
    return value - pivot if counts > 0 else 0


cdef inline void merge_counted(
    double *sums,               # INOUT four numbers, `stride` apart: mean, mean_lo, m2, count
    Py_ssize_t stride,
    double count, double mean, double mean_lo, double m2,
) noexcept nogil:
    """`merge`, where either set may be empty."""
    if count == 0:
        return
    if sums[3 * stride] == 0:
        sums[0] = mean
        sums[stride] = mean_lo
        sums[2 * stride] = m2
    else:
        merge(sums[3 * stride], sums, sums + stride, sums + 2 * stride, count, mean, mean_lo, m2)
    sums[3 * stride] += count


cdef loop merge_counted_columns(double *sums, const double *other, Py_ssize_t stride, Py_ssize_t width) noexcept nogil:
    """Of neighbouring columns, (4, stride): mean, mean_lo, m2, count."""
    cdef Py_ssize_t j
    for j in range(width):
        merge_counted(sums + j, stride, other[3 * stride + j], other[j], other[stride + j], other[2 * stride + j])


# Down columns

cdef struct Weights:            # of the lines of a tile
    const double *first         # of the first row; NULL: 1
    double heaviest             # of all
    Py_ssize_t rows_per_line
    Py_ssize_t channels
    bint omit


cdef inline loop_part repeat_each(
    const double *restrict values, Py_ssize_t size, Py_ssize_t times, double *restrict repeated
) noexcept nogil:
    cdef Py_ssize_t i, k
    for i in range(size):
        for k in range(times):
            repeated[i * times + k] = values[i]


cdef void weights_of_line(const Weights *weights, Py_ssize_t line, Py_ssize_t width, double *of_columns) noexcept nogil:
    """What the columns of a line count, which may be several rows side by side."""
    cdef Py_ssize_t j, rows = weights.rows_per_line
    cdef const double *of_rows = weights.first + line * rows
    if weights.first == NULL or rows == 1:
        for j in range(width):
            of_columns[j] = 1.0 if weights.first == NULL else of_rows[0]
    elif weights.channels == 2:
        repeat_each(of_rows, width // 2, 2, of_columns)
    elif weights.channels == 3:         # colours
        repeat_each(of_rows, width // 3, 3, of_columns)
    elif weights.channels == 4:
        repeat_each(of_rows, width // 4, 4, of_columns)
    else:
        repeat_each(of_rows, width // weights.channels, weights.channels, of_columns)


cdef void heaviest_lines(
    const Weights *weights, Py_ssize_t height, Py_ssize_t rows, Py_ssize_t *lines, double *most
) noexcept nogil:
    """The first line in which each of the `rows` rows of a line has its largest weight, and that."""
    cdef Py_ssize_t i, row
    cdef const double *of_rows
    for row in range(rows):
        lines[row] = 0
        most[row] = weights.first[row]
    for i in range(1, height):
        of_rows = weights.first + i * weights.rows_per_line
        for row in range(rows):
            if of_rows[row] > most[row]:
                most[row] = of_rows[row]
                lines[row] = i


cdef void find_pivots(
    const floating *x, Py_ssize_t stride, Py_ssize_t height, Py_ssize_t width, const Weights *weights, floating *pivot
) noexcept nogil:
    """The first number of the largest weight in each column, or 0 where none counts."""
    cdef Tile most
    cdef Tile of_columns
    cdef Py_ssize_t i, j, found
    cdef double counts
    for j in range(width):
        most[j] = 0
        pivot[j] = 0
    for i in range(height):
        weights_of_line(weights, i, width, of_columns)
        found = 0
        for j in range(width):
            counts = what_counts(of_columns[j], x[i * stride + j], weights.omit)
            if counts > most[j]:
                most[j] = counts
                pivot[j] = x[i * stride + j]
            found += most[j] >= weights.heaviest
        if found == width:
            return


cdef loop add_weighted_lines(
    const floating *restrict x,         # IN (height, width)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,
    const double *restrict weights,     # IN (height)
    Py_ssize_t heaviest,                # line, which is read in place of those that do not count
    const floating *restrict pivot,     # IN (width)
    double *restrict total,             # INOUT (width) Σ u·(x - pivot)
    double *restrict squares,           # INOUT (width) Σ u·(x - pivot)²
    bint from_memory,
) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef const floating *row_a
    cdef const floating *row_b
    cdef const floating *row_c
    cdef const floating *row_d
    cdef double p, a, b, c, d, wa, wb, wc, wd
    for i in range(0, height - 3, 4):
        if from_memory:
            prefetch_rows(x + (i + 4) * stride, stride, width)
        wa = weights[i]
        wb = weights[i + 1]
        wc = weights[i + 2]
        wd = weights[i + 3]
        row_a = x + (i if wa > 0 else heaviest) * stride
        row_b = x + (i + 1 if wb > 0 else heaviest) * stride
        row_c = x + (i + 2 if wc > 0 else heaviest) * stride
        row_d = x + (i + 3 if wd > 0 else heaviest) * stride
        for j in range(width):
            p = pivot[j]
            a = row_a[j] - p
            b = row_b[j] - p
            c = row_c[j] - p
            d = row_d[j] - p
            total[j] += (wa * a + wb * b) + (wc * c + wd * d)
            squares[j] += (wa * a * a + wb * b * b) + (wc * c * c + wd * d * d)
    for i in range(height // 4 * 4, height):
        wa = weights[i]
        row_a = x + (i if wa > 0 else heaviest) * stride
        for j in range(width):
            a = row_a[j] - <double>pivot[j]
            total[j] += wa * a
            squares[j] += wa * a * a


cdef inline floating present(floating value, floating pivot) noexcept nogil:
    return value if value == value else pivot


cdef inline floating is_present(floating value) noexcept nogil:
    return <floating>1 if value == value else <floating>0


cdef loop add_present(
    const floating *restrict x,         # IN (height, width)
    Py_ssize_t stride,
    Py_ssize_t height,
    Py_ssize_t width,
    const floating *restrict pivot,     # IN (width), which is read in place of NaN
    double *restrict total,             # INOUT (width) Σ(x - pivot)
    double *restrict squares,           # INOUT (width) Σ(x - pivot)²
    floating *restrict counts,          # INOUT (width)
    bint from_memory,
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
            a = present(row[j], pivot[j]) - p
            b = present(row[stride + j], pivot[j]) - p
            c = present(row[2 * stride + j], pivot[j]) - p
            d = present(row[3 * stride + j], pivot[j]) - p
            counts[j] += (is_present(row[j]) + is_present(row[stride + j])) + (
                is_present(row[2 * stride + j]) + is_present(row[3 * stride + j]))
            total[j] += (a + b) + (c + d)
            squares[j] += (a * a + b * b) + (c * c + d * d)
    for i in range(height // 4 * 4, height):
        row = x + i * stride
        for j in range(width):
            a = present(row[j], pivot[j]) - <double>pivot[j]
            counts[j] += is_present(row[j])
            total[j] += a
            squares[j] += a * a


cdef inline loop_part add_counted_rows(
    const floating *restrict x,         # IN (rows, width)
    Py_ssize_t stride,
    Py_ssize_t rows,                    # 4 or 1
    Py_ssize_t width,
    const double *restrict weights,     # IN (rows, TILE)
    bint omit,
    const floating *restrict pivot,     # IN (width)
    double *restrict total,             # INOUT (width) Σ u·(x - pivot)
    double *restrict squares,           # INOUT (width) Σ u·(x - pivot)²
    double *restrict counts,            # INOUT (width) Σ u
) noexcept nogil:
    cdef Py_ssize_t j
    cdef double p, a, b, c, d, ua, ub, uc, ud
    if rows == 1:
        for j in range(width):
            ua = what_counts(weights[j], x[j], omit)
            a = deviation(x[j], pivot[j], ua)
            counts[j] += ua
            total[j] += ua * a
            squares[j] += ua * a * a
        return
    for j in range(width):
        p = pivot[j]
        ua = what_counts(weights[j], x[j], omit)
        ub = what_counts(weights[TILE + j], x[stride + j], omit)
        uc = what_counts(weights[2 * TILE + j], x[2 * stride + j], omit)
        ud = what_counts(weights[3 * TILE + j], x[3 * stride + j], omit)
        a = deviation(x[j], p, ua)
        b = deviation(x[stride + j], p, ub)
        c = deviation(x[2 * stride + j], p, uc)
        d = deviation(x[3 * stride + j], p, ud)
        counts[j] += (ua + ub) + (uc + ud)
        total[j] += (ua * a + ub * b) + (uc * c + ud * d)
        squares[j] += (ua * a * a + ub * b * b) + (uc * c * c + ud * d * d)


cdef loop counted_column_moments(
    const floating *x,                  # IN (height, width)
    Py_ssize_t stride,
    Py_ssize_t height,                  # 1 to BLOCK
    Py_ssize_t width,                   # at most TILE
    const Weights *weights,
    double *sums,                       # OUT (4, sums_stride) mean, mean_lo, m2, count
    Py_ssize_t sums_stride,
    bint from_memory,                   # ask for rows ahead
) noexcept nogil:
    cdef floating[TILE] pivot
    cdef floating[TILE] present_counts
    cdef Tile total
    cdef Tile squares
    cdef Tile counts
    cdef double[FOUR_TILES] of_rows
    cdef Tile most
    cdef Py_ssize_t[TILE] heaviest
    cdef Py_ssize_t i, j, row, rows = 1 if weights.rows_per_line == 1 else width // weights.channels
    for j in range(width):
        total[j] = squares[j] = counts[j] = 0
        present_counts[j] = 0
    if weights.first != NULL and not weights.omit:
        heaviest_lines(weights, height, rows, heaviest, most)
    if weights.first != NULL and weights.rows_per_line == 1 and not weights.omit:
        memcpy(pivot, x + heaviest[0] * stride, width * sizeof(floating))
        if most[0] > 0:
            add_weighted_lines(x, stride, height, width, weights.first, heaviest[0], pivot, total, squares, from_memory)
        for i in range(height):
            counts[0] += weights.first[i]
        for j in range(1, width):
            counts[j] = counts[0]
    elif weights.first == NULL:
        find_pivots(x, stride, height, width, weights, pivot)
        add_present(x, stride, height, width, pivot, total, squares, present_counts, from_memory)
        for j in range(width):
            counts[j] = present_counts[j]
    else:
        if weights.omit:
            find_pivots(x, stride, height, width, weights, pivot)
        else:
            for j in range(width):
                pivot[j] = x[heaviest[j // weights.channels] * stride + j]
        for i in range(height // 4):
            for row in range(4):
                weights_of_line(weights, 4 * i + row, width, of_rows + row * TILE)
            if weights.omit:
                add_counted_rows(x + 4 * i * stride, stride, 4, width, of_rows, True, pivot, total, squares, counts)
            else:
                add_counted_rows(x + 4 * i * stride, stride, 4, width, of_rows, False, pivot, total, squares, counts)
        for i in range(height // 4 * 4, height):
            weights_of_line(weights, i, width, of_rows)
            add_counted_rows(x + i * stride, stride, 1, width, of_rows, weights.omit, pivot, total, squares, counts)
    for j in range(width):
        sums[j] = sums[sums_stride + j] = sums[2 * sums_stride + j] = 0
        sums[3 * sums_stride + j] = counts[j]
        if counts[j] > 0:
            centre(1.0 / counts[j], pivot[j], total[j], squares[j], sums + j, sums + sums_stride + j,
                   sums + 2 * sums_stride + j)


cdef loop collect_counted_columns(const Call *call, int thread, int threads) noexcept nogil:
    """The moments of a thread's tasks: partial (chunks, 4, width) mean, mean_lo, m2, count."""
    cdef const Facts *facts = &call.facts
    cdef const Columns *columns = &facts.columns
    cdef double[FOUR_TILES] block       # (4, TILE) mean, mean_lo, m2, count
    cdef double *sums
    cdef double *into
    cdef Py_ssize_t number, done, height, stride, j, width = columns.width
    cdef Weights weights
    cdef Task task
    weights.heaviest = facts.heaviest
    weights.rows_per_line = columns.rows_per_line
    weights.channels = facts.channels
    weights.omit = facts.omit
    for number in range(share(columns.tasks, thread, threads), share(columns.tasks, thread + 1, threads)):
        task = columns_task(columns, number, 1)
        if task.width == 0:
            continue
        sums = facts.partial + task.chunk * 4 * width + task.left
        done = 0
        while done < task.height:
            height = min(<Py_ssize_t>BLOCK, task.height - done)
            weights.first = NULL
            if facts.weights != NULL:
                weights.first = facts.weights + (task.start // width + done) * columns.rows_per_line
            into = sums if done == 0 else block
            stride = width if done == 0 else <Py_ssize_t>TILE
            counted_column_moments(call.x + task.start + done * width, width, height, task.width, &weights, into,
                                   stride, facts.from_memory)
            if done > 0:
                for j in range(task.width):
                    merge_counted(sums + j, width, block[3 * TILE + j], block[j], block[TILE + j], block[2 * TILE + j])
            done += height


cdef void merge_counted_columns_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The moments of channels first to last - 1: over the chunks, the tail, the rows of a line."""
    cdef const Columns *columns = &facts.columns
    cdef Py_ssize_t chunk, row, width = columns.width
    cdef Py_ssize_t size = (last if columns.rows_per_line == 1 else width) - first
    cdef double *sums = facts.partial + first
    for chunk in range(1, columns.chunks):
        merge_counted_columns(sums, sums + chunk * 4 * width, width, size)
    if columns.tail > 0:
        merge_counted_columns(sums, sums + columns.chunks * 4 * width, width, columns.tail)
    for row in range(1, columns.rows_per_line):
        merge_counted_columns(sums, sums + row * facts.channels, width, facts.channels)
    memcpy(facts.mean + first, sums, (last - first) * sizeof(double))
    memcpy(facts.mean_lo + first, sums + width, (last - first) * sizeof(double))
    memcpy(facts.m2 + first, sums + 2 * width, (last - first) * sizeof(double))
    memcpy(facts.counts + first, sums + 3 * width, (last - first) * sizeof(double))


# Once a channel

cdef void merge_counted_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    if facts.walk == COLUMNS:
        merge_counted_columns_moments(facts, first, last)
    else:
        merge_counted_planes_moments(facts, first, last)


cdef void use_counted_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """inv_std from m2, with a count for each channel; 0 where nothing counts, NaN where there is no variance."""
    cdef Py_ssize_t c
    cdef double degrees
    for c in range(first, last):
        degrees = facts.counts[c] - facts.ddof
        facts.inv_std[c] = NAN
        if facts.counts[c] == 0:
            facts.inv_std[c] = 0
        elif degrees > 0:
            facts.inv_std[c] = inverse_std(facts.m2[c] * (1 / degrees), facts.eps)
