# Moments where numbers count differently: each by the weight of its place, or not at all where it is NaN and left out.
#
# Design
# A. With u what a number counts and W = Σ u: mean = Σ u·x / W, m2 = Σ u·(x - mean)². What counts 0 is not read: it may
#    be NaN. Where no number counts, mean and m2 are 0, and nothing merges with them.
# B. Geometry, order of sums and merges are those of numbers that count alike, so weights of 1 give the very bits of none.
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
    cdef double[1024] of_rows           # (4, TILE)
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
    cdef double[1024] block             # (4, TILE)
    cdef double *sums
    cdef double *into
    cdef Py_ssize_t number, done, height, stride, j, kind, width = columns.width
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


# Along runs

cdef inline loop_part add_counted_lanes(
    const floating *restrict x,         # IN (height, size)
    Py_ssize_t stride,
    const double *restrict weights,     # IN (height, size), or NULL: 1
    Py_ssize_t weights_stride,
    Py_ssize_t height,
    Py_ssize_t size,                    # at most LANES
    Py_ssize_t skip,                    # the first lanes do not count
    bint omit,
    bint trusting,                      # what counts 0 is read, and hoped to be a number
    double pivot,
    double *restrict total,             # INOUT (LANES) Σ u·(x - pivot), as are the next two
    double *restrict squares,
    double *restrict counts,
) noexcept nogil:
    """Four rows a turn; the last ones, and those of less than LANES numbers, one by one."""
    cdef Py_ssize_t i, k, fours = height // 4 if size == LANES else 0
    cdef const floating *row
    cdef const double *weight
    cdef double a, b, c, d, ua, ub, uc, ud
    for i in range(fours):
        row = x + 4 * i * stride
        weight = beginning(weights, 4 * i * weights_stride)
        for k in range(LANES):
            ua = what_counts(1.0 if weights == NULL else weight[k], row[k], omit)
            ub = what_counts(1.0 if weights == NULL else weight[weights_stride + k], row[stride + k], omit)
            uc = what_counts(1.0 if weights == NULL else weight[2 * weights_stride + k], row[2 * stride + k], omit)
            ud = what_counts(1.0 if weights == NULL else weight[3 * weights_stride + k], row[3 * stride + k], omit)
            a = row[k] - pivot if trusting else deviation(row[k], pivot, ua)
            b = row[stride + k] - pivot if trusting else deviation(row[stride + k], pivot, ub)
            c = row[2 * stride + k] - pivot if trusting else deviation(row[2 * stride + k], pivot, uc)
            d = row[3 * stride + k] - pivot if trusting else deviation(row[3 * stride + k], pivot, ud)
            counts[k] += (ua + ub) + (uc + ud) if k >= skip else 0
            total[k] += (ua * a + ub * b) + (uc * c + ud * d) if k >= skip else 0
            squares[k] += (ua * a * a + ub * b * b) + (uc * c * c + ud * d * d) if k >= skip else 0
    for i in range(4 * fours, height):
        row = x + i * stride
        weight = beginning(weights, i * weights_stride)
        for k in range(skip, size):
            ua = what_counts(1.0 if weights == NULL else weight[k], row[k], omit)
            a = row[k] - pivot if trusting else deviation(row[k], pivot, ua)
            counts[k] += ua
            total[k] += ua * a
            squares[k] += ua * a * a


cdef inline double first_pivot(
    const floating *x, const double *weights, Py_ssize_t size, Py_ssize_t numbers, bint omit, double *weight
) noexcept nogil:
    """Of a piece of so many numbers, from the first run's first ones, `size`; and the weight behind it, perhaps 0."""
    cdef Lanes deviations
    cdef Lanes counts
    cdef double pivot = 0, most = 0
    cdef Py_ssize_t k
    for k in range(LANES):
        counts[k] = what_counts(1.0 if weights == NULL else weights[k], x[k], omit) if k < size else 0
        if counts[k] > most:
            most = counts[k]
            pivot = x[k]
    weight[0] = most
    if numbers > BLOCK and most > 0:
        for k in range(LANES):
            deviations[k] = counts[k] * deviation(x[k], pivot, counts[k]) if k < size else 0
        weight[0] = sum_of_lanes(counts)
        pivot += sum_of_lanes(deviations) / weight[0]
    return pivot


cdef inline loop_part add_counted_runs(
    const floating *x, Py_ssize_t stride, const double *weights, Py_ssize_t weights_stride, Py_ssize_t height,
    Py_ssize_t size, bint omit, bint trusting, double pivot,
    double *total, double *squares, double *counts,     # OUT (LANES)
) noexcept nogil:
    """The sums of `height` runs, in the order of `run_moments`."""
    cdef Py_ssize_t i, k, skip, whole = size // LANES
    for k in range(LANES):
        total[k] = squares[k] = counts[k] = 0
    if height == 1:
        add_counted_lanes(
            x, LANES, weights, LANES, whole, LANES, 0, omit, trusting, pivot, total, squares, counts)
    else:
        for i in range((height + 3) // 4):
            for k in range(whole):
                add_counted_lanes(
                    x + 4 * i * stride + k * LANES, stride, beginning(weights, 4 * i * weights_stride + k * LANES),
                    weights_stride, min(4, height - 4 * i), LANES, 0, omit, trusting, pivot, total, squares, counts)
    if whole == 0:
        add_counted_lanes(
            x, stride, weights, weights_stride, height, size, 0, omit, False, pivot, total, squares, counts)
    elif size > whole * LANES:          # the last LANES numbers, of which some were counted
        skip = (whole + 1) * LANES - size
        add_counted_lanes(x + size - LANES, stride, beginning(weights, size - LANES), weights_stride, height, LANES,
                          skip, omit, False, pivot, total, squares, counts)


cdef loop counted_run_moments(
    const floating *x,                  # IN (height, size)
    Py_ssize_t stride,
    const double *weights,              # IN (height, size), or NULL: 1
    Py_ssize_t weights_stride,
    Py_ssize_t height,
    Py_ssize_t size,
    bint omit,
    double *sums,                       # OUT mean, mean_lo, m2, count
) noexcept nogil:
    """The moments of all numbers of `height` runs, together 1 to PIECE."""
    cdef Lanes total
    cdef Lanes squares
    cdef Lanes counts
    cdef double weight, count, sum_of_deviations
    cdef double pivot = first_pivot(x, weights, min(size, <Py_ssize_t>LANES), height * size, omit, &weight)
    cdef bint trusting = not omit
    while True:     # again where what counts 0 was no number, or the pivot had too little behind it
        if weights == NULL:
            add_counted_runs(x, stride, <const double *>NULL, 0, height, size, True, False, pivot, total, squares, counts)
        elif trusting:
            add_counted_runs(x, stride, weights, weights_stride, height, size, False, True, pivot, total, squares, counts)
        else:
            add_counted_runs(x, stride, weights, weights_stride, height, size, omit, False, pivot, total, squares, counts)
        count = sum_of_lanes(counts)
        sum_of_deviations = sum_of_lanes(total)
        if trusting and sum_of_deviations - sum_of_deviations != 0:
            trusting = False
        elif count > BLOCK * weight:
            weight = count
            pivot += sum_of_deviations / count
        else:
            break
    sums[0] = sums[1] = sums[2] = 0
    sums[3] = count
    if count > 0:
        centre(1.0 / count, pivot, sum_of_deviations, sum_of_lanes(squares), sums, sums + 1, sums + 2)


cdef loop collect_counted_plane(const Call *call, Py_ssize_t channel, Py_ssize_t chunk) noexcept nogil:
    """The moments of a task: partial (channels, chunks, 4) mean, mean_lo, m2, count."""
    cdef const Facts *facts = &call.facts
    cdef const Planes *planes = &facts.planes
    cdef double[4] found
    cdef double *sums = facts.partial + (channel * planes.chunks + chunk) * 4
    cdef Py_ssize_t number, place, stride = facts.channels * facts.inner
    cdef Part part
    memset(sums, 0, 4 * sizeof(double))
    for number in range(chunk * planes.chunk, min(planes.parts, (chunk + 1) * planes.chunk)):
        part = planes_part(facts, channel, number)
        place = number // planes.pieces * planes.height * facts.inner + number % planes.pieces * PIECE
        counted_run_moments(call.x + part.start, stride, beginning(facts.weights, place), facts.inner, part.height,
                            part.width, facts.omit, found)
        merge_counted(sums, 1, found[3], found[0], found[1], found[2])


cdef void merge_counted_planes_moments(const Facts *facts, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t channel, chunk
    cdef double *sums
    cdef double *other
    for channel in range(first, last):
        sums = facts.partial + channel * facts.planes.chunks * 4
        for chunk in range(1, facts.planes.chunks):
            other = sums + chunk * 4
            merge_counted(sums, 1, other[3], other[0], other[1], other[2])
        facts.mean[channel] = sums[0]
        facts.mean_lo[channel] = sums[1]
        facts.m2[channel] = sums[2]
        facts.counts[channel] = sums[3]


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


# The second pass of the gradient: dx = ((dout - w·((x - mean)·slope)) - w·mean_dout)·scale, with slope = inv_std·dgamma / W
# and mean_dout = dbeta / W. Where w is 0, x does not matter.

cdef inline floating differentiated_counted(
    floating dout, floating x, floating mean_hi, floating mean_lo, floating scale, floating slope, floating mean_dout,
    floating weight
) noexcept nogil:
    return (
        ((dout - weight * (((x - mean_hi) - mean_lo) * slope)) - weight * mean_dout) * scale
        if weight > 0 else dout * scale)


cdef inline loop_part counted_gradient_row(
    const floating *restrict dout,      # IN (width)
    const floating *restrict x,         # IN (width)
    Py_ssize_t width,
    const floating *restrict factors,   # IN (kinds, stride), of each column
    Py_ssize_t stride,
    const floating *restrict weights,   # IN (width), or one for all of them
    bint one_weight,
    floating *restrict dx,              # OUT (width)
) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(width):
        dx[j] = differentiated_counted(
            dout[j], x[j], factors[MEAN_HI * stride + j], factors[MEAN_LO * stride + j], factors[SCALE * stride + j],
            factors[SLOPE * stride + j], factors[MEAN_DOUT * stride + j], weights[0 if one_weight else j])


cdef inline loop_part counted_gradient_run(
    const floating *restrict dout,      # IN (size), as are x and weights
    const floating *restrict x,
    Py_ssize_t size,
    floating mean_hi, floating mean_lo, floating scale, floating slope, floating mean_dout,
    const double *restrict weights,
    floating *restrict dx,              # OUT (size)
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        dx[i] = differentiated_counted(
            dout[i], x[i], mean_hi, mean_lo, scale, slope, mean_dout, <floating>weights[i])


cdef loop store_counted_row(
    const floating *dout, const floating *x, Py_ssize_t width, const floating *factors, Py_ssize_t stride,
    const floating *weights, bint one_weight, floating *dx, Store store,
) noexcept nogil:
    cdef floating[BURST] burst
    cdef Py_ssize_t j = 0, here
    while j < width:
        here = stretch(dx + j, width - j, store)
        out = dx + j if store == DIRECT else burst
        if here == BURST:
            if one_weight:
                counted_gradient_row(dout + j, x + j, BURST, factors + j, stride, weights, True, burst)
            else:
                counted_gradient_row(dout + j, x + j, BURST, factors + j, stride, weights + j, False, burst)
            put(dx + j, burst, store)
        else:
            if one_weight:
                counted_gradient_row(dout + j, x + j, here, factors + j, stride, weights, True, out)
            else:
                counted_gradient_row(dout + j, x + j, here, factors + j, stride, weights + j, False, out)
            keep(dx + j, burst, here, store)
        j += here


cdef loop store_counted_run(
    const floating *dout, const floating *x, Py_ssize_t size, const floating *factors, Py_ssize_t stride,
    const double *weights, floating *dx, Store store,
) noexcept nogil:
    cdef floating mean_hi = factors[MEAN_HI * stride], mean_lo = factors[MEAN_LO * stride]
    cdef floating scale = factors[SCALE * stride], slope = factors[SLOPE * stride]
    cdef floating mean_dout = factors[MEAN_DOUT * stride]
    cdef floating[BURST] burst
    cdef Py_ssize_t i = 0, here
    while i < size:
        here = stretch(dx + i, size - i, store)
        if here == BURST:
            counted_gradient_run(dout + i, x + i, BURST, mean_hi, mean_lo, scale, slope, mean_dout, weights + i, burst)
            put(dx + i, burst, store)
        else:
            counted_gradient_run(dout + i, x + i, here, mean_hi, mean_lo, scale, slope, mean_dout, weights + i,
                                 dx + i if store == DIRECT else burst)
            keep(dx + i, burst, here, store)
        i += here


cdef loop differentiate_counted_columns(const Call *call, int thread, int threads) noexcept nogil:
    """A line of a strip at a time."""
    cdef Call own = call[0]
    cdef const Columns *columns = &call.facts.columns
    cdef Py_ssize_t line, start, stride = own.facts.factor_stride, size = columns.width
    cdef Py_ssize_t first = share(columns.tasks, thread, threads), last = share(columns.tasks, thread + 1, threads)
    cdef Weights weights
    cdef Task strip
    cdef bint one_weight = columns.rows_per_line == 1
    weights.rows_per_line = columns.rows_per_line
    weights.channels = own.facts.channels
    while last > first:
        strip = strip_before(columns, first, &last)
        weights.first = own.facts.weights + strip.start // size * columns.rows_per_line
        for line in range(strip.height if strip.width > 0 else 0):
            start = strip.start + line * size
            if one_weight and weights.first[line] == 1:
                store_gradient_rows(own.dout + start, own.x + start, strip.width, size, own.factors + strip.left, stride,
                                    False, own.out + start, own.facts.store)
            else:
                store_counted_line(&own, &weights, line, &strip)


cdef void store_counted_line(const Call *call, const Weights *weights, Py_ssize_t line, const Task *strip) noexcept nogil:
    cdef Py_ssize_t j, start = strip.start + line * call.facts.columns.width
    cdef Tile of_columns
    cdef double[TILE] room
    cdef bint one_weight = weights.rows_per_line == 1
    of_line = call.factors
    place_factors(&of_line, room)
    if one_weight:
        of_line[0] = weights.first[line]
    else:
        weights_of_line(weights, line, strip.width, of_columns)
        for j in range(strip.width):
            of_line[j] = of_columns[j]
    store_counted_row(call.dout + start, call.x + start, strip.width, call.factors + strip.left,
                      call.facts.factor_stride, of_line, one_weight, call.out + start, call.facts.store)


cdef loop differentiate_counted_span(const Call *call, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Numbers first to last - 1, in the order of memory."""
    cdef Call own = call[0]
    cdef Py_ssize_t channels = own.facts.channels, inner = own.facts.inner
    cdef Py_ssize_t run, place, size
    while first < last:
        run = first // inner
        place = first % inner
        size = min(inner - place, last - first)
        store_counted_run(own.dout + first, own.x + first, size, own.factors + run % channels, own.facts.factor_stride,
                          own.facts.weights + run // channels * inner + place, own.out + first, own.facts.store)
        first += size
