# A call carries its own facts: what it was asked for, how its arrays lie in memory, where its statistics and its
# workspace are. Every pass takes the call and the part of it that is its own, and nothing else.
#
# Design
# A. FloatCall and DoubleCall differ in the type of their arrays alone. Functions of a `Call` are compiled for both, and
#    the type of `call.x` picks the functions on numbers.
# B. All else is in `Facts`, so that what only concerns statistics is compiled once.
# C. Workspace is one block for a call: partial sums, sums, factors. Their sizes stand beside the code that uses them.

cdef enum:
    MOST_CHUNKS = 64    # of an array's lines or rows: each has sums of its own


cdef enum Walk:
    COLUMNS
    PLANES
    ROWS
    SAMPLES


cdef struct Columns:
    Py_ssize_t rows_per_line    # narrow rows stand side by side, as one line
    Py_ssize_t width            # columns of a line
    Py_ssize_t height           # whole lines
    Py_ssize_t tail_rows        # rows that do not fill a line
    Py_ssize_t tail             # their numbers
    Py_ssize_t chunk            # lines of a chunk
    Py_ssize_t chunks           # of whole lines; the tail is one more
    Py_ssize_t tiles
    Py_ssize_t tasks


cdef struct Planes:
    Py_ssize_t size             # numbers in all
    Py_ssize_t height           # whole runs of a part, where they are short
    Py_ssize_t pieces           # of a run
    Py_ssize_t parts            # of a channel
    Py_ssize_t chunk            # parts of a task
    Py_ssize_t chunks           # of a channel


cdef struct Rows:
    Py_ssize_t runs             # of `inner` numbers
    Py_ssize_t size             # of a row: runs * inner
    double one_by_size
    Py_ssize_t chunk            # rows of a chunk
    Py_ssize_t chunks


cdef struct Samples:            # each is columns; `columns` is the geometry of one
    Py_ssize_t count
    Py_ssize_t positions
    Py_ssize_t chunk            # samples of a chunk
    Py_ssize_t chunks
    int workers                 # that take samples by themselves; 1 where all threads take each sample together


cdef struct Moving:             # the running averages; the pointers may be NULL
    double momentum
    double ddof
    double *mean                # (channels)
    double *var


cdef struct Facts:
    Py_ssize_t outer            # x is (outer, channels, inner)
    Py_ssize_t channels
    Py_ssize_t inner
    Py_ssize_t groups           # of channels, with statistics at each place; 0: each channel has its own
    Py_ssize_t sets             # of numbers that share their statistics: channels, or rows
    double count                # M, what m2 and the gradient's sums are divided by
    double eps
    bint centred                # False: the mean is held at 0
    bint statistics_given       # not those of x: constants, in the gradient
    bint sums_given
    bint backward
    bint collecting             # moments or the gradient's sums are to be found: a first pass
    double *mean                # (sets), as are the next three
    double *mean_lo
    double *m2
    double *inv_std
    const double *weights       # (outer, inner), of all channels; NULL: 1
    double heaviest             # of the weights
    bint omit                   # NaN does not count
    double *counts              # (sets) what the numbers of each count together; NULL: they count alike, `count` in all
    double ddof                 # what is taken from these for the variance
    double *sum_dout            # (channels) Σ dout
    double *sum_dout_xhat       # (channels) Σ dout·xhat; both NULL: not wanted
    Moving moving
    double least_m2             # outside these, a set is looked at again
    double most_m2
    double most_mean            # beyond these, or below the next, the array's dtype does not hold x - mean or inv_std
    double most_inv_std
    double least_inv_std
    bint *beyond                # OUT whether there is such a set, or one whose sums of the gradient are not finite

    Walk walk
    Columns columns             # of the walk, one of the four
    Planes planes
    Rows rows
    Samples samples             # no count where channels do not come last, or have statistics over all samples
    bint from_memory            # what is read takes more than half of the last-level cache
    bint beyond_cache           # what is read and written does not fit there
    Store store
    bint stored                 # some array is stored otherwise than it is computed
    Storage x_storage           # as is the next, those of three arrays; their pointers are to bytes then
    Storage dout_storage
    Storage out_storage
    Py_ssize_t row_room         # numbers of rows that are widened at a time
    Py_ssize_t step             # sets that a thread takes through all passes in its cache; 0: all pass together
    Py_ssize_t factor_stride    # numbers from one kind of factors to the next
    double *partial             # sums of the parts that the walk cuts its array into; NULL if not collecting
    double *row_sums            # (2, MOST_STEP) of a thread: Σ dxhat, Σ dxhat·xhat of its rows; or sample room


cdef struct FloatCall:
    Facts facts
    const float *x              # (outer, channels, inner), as are the next two
    const float *dout
    float *out                  # y or dx; NULL: not wanted
    const float *gamma          # (channels), as are the next three; NULL: 1
    const float *beta           # NULL: 0
    float *dgamma               # NULL: not wanted
    float *dbeta
    float *rooms            # (3, row_room) of a thread: widened rows of x and dout, and of results
    float *factors              # (kinds, factor_stride), for the second pass: of each channel, or a thread's rows


cdef struct DoubleCall:
    Facts facts
    const double *x
    const double *dout
    double *out
    const double *gamma
    const double *beta
    double *dgamma
    double *dbeta
    double *rooms           # (3, row_room) of a thread: widened rows of x and dout, and of results
    double *factors


cdef struct Passage:            # what of a call's arrays is widened, for a piece of a pass
    double[PASSAGE + 40] x      # so that no two of them share the sets of the cache
    double[PASSAGE + 40] dout
    double[PASSAGE] out


ctypedef fused Call:
    FloatCall
    DoubleCall


cdef enum:              # kinds of factors, one after the other
    MEAN_HI
    MEAN_LO
    SCALE               # gamma·inv_std; inv_std alone for xhat, and for rows
    SHIFT               # beta
    SLOPE = SHIFT       # in the gradient, as is the next: inv_std·Σ dout·xhat / M
    MEAN_DOUT           # Σ dout / M
    XHAT_KINDS = 3      # how many there are for xhat, for y, for dx
    Y_KINDS = 4
    DX_KINDS = 5
    GAMMA = DX_KINDS    # where dx is of dout·gamma
    SCALED_KINDS = 6
