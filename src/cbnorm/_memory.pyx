"""Memory of results: blocks that were freed are kept, up to a limit, and handed out again.

Design

a. malloc gives large blocks back to the system as they are freed, or when another library frees one beside
   them, and a page taken anew costs as much as the numbers in it. Here a freed block keeps its pages.
b. Arrays get their memory from NumPy's hooks (NEP 49): ours are in force while an array is made and at no other
   time, and only over NumPy's own. The array remembers them, so that it may be resized, and freed by anyone.
c. A block is its data and, before them, a header that knows where the block begins and how much the data may be.
   Nothing else is believed: not the size that comes with a free. From 1 MiB on a block is mapped by itself: kept
   among malloc's it would hold back the memory below it, and the process would grow by more than the limit.
d. Sizes are rounded up to a class, eight classes a doubling, and a block serves its own class alone: nearly equal
   batches share blocks, and what a result has too much is an eighth at most.
e. One list, oldest first. The block freed last goes out first, it may still be in a cache; the oldest goes back
   to the system when the limit or the number of slots would be passed.
f. The list has a flag and no lock: who finds it taken does without. So nobody waits, in a free least of all,
   and a child forked in between forgets the list and goes on.
g. Where memory runs short nothing is kept. A free looks at it ten times a second at most.
h. Blocks are freed by whoever drops the last reference, perhaps while the interpreter ends: all of that is C.
"""

import os
import time

from cpython.contextvars cimport PyContext_Copy, PyContext_Enter, PyContext_Exit, PyContext_New
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strcpy

cimport numpy as cnp

cnp.import_array()

cdef extern from "_memory.h" nogil:
    ctypedef char cbnorm_flag
    bint cbnorm_try(cbnorm_flag *flag)
    void cbnorm_leave(cbnorm_flag *flag)
    long long cbnorm_milliseconds()
    void *cbnorm_map(size_t size, bint huge)
    void cbnorm_unmap(void *start, size_t size)
    const bint CBNORM_HAS_CONTEXTS

cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyDataMemAllocator:
        void *ctx
        void *(*malloc)(void *ctx, size_t size) noexcept nogil
        void *(*calloc)(void *ctx, size_t count, size_t size) noexcept nogil
        void *(*realloc)(void *ctx, void *data, size_t size) noexcept nogil
        void (*free)(void *ctx, void *data, size_t size) noexcept nogil

    ctypedef struct PyDataMem_Handler:
        char[127] name
        uint8_t version
        PyDataMemAllocator allocator

    PyObject *PyDataMem_DefaultHandler
    object PyDataMem_GetHandler()
    object PyDataMem_SetHandler(object handler)

cdef enum:
    LEAST = 131072      # bytes: what is smaller glibc never maps by itself, and the hooks take half a microsecond
    MAPPED = 1048576
    HUGE = 4194304      # from here NumPy asks for huge pages, and so do we
    PAGE = 4096         # large data start with one: at another place in it than x, a store can hold up a later load
    LINE = 64           # small data start with a line of the caches; the header has one to itself
    SLOTS = 128         # as many as a deep network has layers

cdef struct Block:      # the header; data begin LINE bytes after it
    void *start         # what malloc gave, or a mapping
    size_t mapped       # bytes of the mapping; 0: it is malloc's
    size_t capacity     # bytes of data

cdef cbnorm_flag taken = 0      # guards all of the following
cdef Block *kept[SLOTS]         # oldest first
cdef size_t[SLOTS] capacities   # theirs: a search touches no header
cdef Py_ssize_t count = 0
cdef size_t kept_bytes = 0
cdef size_t limit = 0

cdef bint huge_pages = os.environ.get("NUMPY_MADVISE_HUGEPAGE", "1").strip() != "0"   # NumPy's own switch


include "_memory_watch.pxi"


cdef size_t size_class(size_t size) noexcept nogil:
    """Bytes of the class of a size: eight steps from one power of two to the next."""
    cdef size_t step = PAGE
    while 16 * step < size:
        step *= 2
    return (size + step - 1) // step * step


cdef void *new_block(size_t capacity) noexcept nogil:
    cdef size_t boundary = LINE if capacity < LEAST else PAGE
    cdef size_t room = capacity + LINE + boundary
    cdef size_t mapped = room if capacity >= MAPPED else 0
    cdef char *start = NULL
    cdef char *data
    cdef Block *block
    if mapped:
        start = <char *>cbnorm_map(mapped, capacity >= HUGE and huge_pages)
    if start == NULL:
        mapped = 0
        start = <char *>malloc(room)
    if start == NULL:
        return NULL
    data = start + LINE + boundary - 1
    data -= <size_t>data % boundary
    block = <Block *>(data - LINE)
    block.start = start
    block.mapped = mapped
    block.capacity = capacity
    return data


cdef size_t free_block(Block *block) noexcept nogil:
    """Give a block back to the system; returns how many bytes of data."""
    cdef size_t capacity = block.capacity
    if block.mapped:
        cbnorm_unmap(block.start, block.mapped)
    else:
        free(block.start)
    return capacity


cdef inline Block *block_of(void *data) noexcept nogil:
    return <Block *>(<char *>data - LINE)


cdef Block *remove(Py_ssize_t index) noexcept nogil:
    """Take a block out of the list."""
    global count, kept_bytes
    cdef Block *block = kept[index]
    count -= 1
    kept_bytes -= block.capacity
    for index in range(index, count):
        kept[index] = kept[index + 1]
        capacities[index] = capacities[index + 1]
    return block


cdef int remove_oldest(size_t room, Py_ssize_t slots, Block **removed) noexcept nogil:
    """Take the oldest blocks out until so many bytes and slots are left at most; returns how many, for `release`."""
    cdef int number = 0
    while kept_bytes > room or count > slots:
        removed[number] = remove(0)
        number += 1
    return number


cdef size_t release(Block **removed, int number) noexcept nogil:
    """Give blocks back to the system; not while the flag is held, since large ones take a while."""
    cdef size_t size = 0
    for i in range(number):
        size += free_block(removed[i])
    return size


cdef void append(Block *block) noexcept nogil:
    global count, kept_bytes
    kept[count] = block
    capacities[count] = block.capacity
    count += 1
    kept_bytes += block.capacity


cdef void *pool_take(size_t size) noexcept nogil:
    """Memory for at least so many bytes, for `pool_give`; NULL where there is none."""
    cdef size_t capacity
    cdef Block *block = NULL
    cdef Block *removed[SLOTS]
    cdef int number = 0
    cdef Py_ssize_t i
    cdef void *data
    if size < LEAST:
        return new_block(size)
    if size > <size_t>-1 // 2:
        return NULL
    capacity = size_class(size)
    if cbnorm_try(&taken):
        for i in range(count - 1, -1, -1):
            if capacities[i] == capacity:
                block = remove(i)
                break
        cbnorm_leave(&taken)
    if block != NULL:
        return <char *>block + LINE
    data = new_block(capacity)
    if data == NULL and cbnorm_try(&taken):
        number = remove_oldest(0, 0, removed)
        cbnorm_leave(&taken)
        release(removed, number)
        data = new_block(capacity)
    return data


cdef void pool_give(void *data) noexcept nogil:
    """Take a block back: into the list if there is room, else to the system."""
    cdef Block *block
    cdef Block *removed[SLOTS]
    cdef int number = 0
    if data == NULL:
        return
    block = block_of(data)
    if block.capacity >= LEAST and cbnorm_try(&taken):
        look_at_memory(min(limit, kept_bytes + block.capacity))
        if short_of_memory:
            number = remove_oldest(0, 0, removed)
        elif block.capacity <= limit:
            number = remove_oldest(limit - block.capacity, SLOTS - 1, removed)
            append(block)
            block = NULL
        cbnorm_leave(&taken)
        release(removed, number)
    if block != NULL:
        free_block(block)


cdef void *hook_malloc(void *ctx, size_t size) noexcept nogil:
    return pool_take(size)


cdef void *hook_calloc(void *ctx, size_t number, size_t size) noexcept nogil:
    cdef void *data = NULL
    if size == 0 or number <= <size_t>-1 // size:
        data = pool_take(number * size)
    if data != NULL:
        memset(data, 0, number * size)
    return data


cdef void *hook_realloc(void *ctx, void *data, size_t size) noexcept nogil:
    cdef size_t capacity
    cdef void *moved
    if data == NULL:
        return pool_take(size)
    capacity = block_of(data).capacity
    if capacity // 2 <= size <= capacity:
        return data
    moved = pool_take(size)
    if moved == NULL:
        return data if size <= capacity else NULL
    memcpy(moved, data, min(size, capacity))
    pool_give(data)
    return moved


cdef void hook_free(void *ctx, void *data, size_t size) noexcept nogil:
    pool_give(data)


cdef PyDataMem_Handler hooks
strcpy(hooks.name, "cbnorm")
hooks.version = 1
hooks.allocator = PyDataMemAllocator(
    ctx=NULL, malloc=hook_malloc, calloc=hook_calloc, realloc=hook_realloc, free=hook_free)

# Contexts with our hooks are entered and left, rather than hooks set and set again: that takes memory, and where
# there was none all of NumPy would go on with ours.
cdef object our_context = PyContext_New()
if CBNORM_HAS_CONTEXTS:
    PyContext_Enter(our_context)
    PyDataMem_SetHandler(PyCapsule_New(&hooks, "mem_handler", NULL))
    PyContext_Exit(our_context)


cdef object new_array(int ndim, cnp.npy_intp *shape, int type_number):
    """A C-contiguous array of float16, float32 or float64 that nobody has filled; a large one from the pool."""
    cdef size_t size = 8 if type_number == cnp.NPY_DOUBLE else 4 if type_number == cnp.NPY_FLOAT else 2
    for i in range(ndim):
        size *= shape[i]
    if size < LEAST or size > limit or not CBNORM_HAS_CONTEXTS:
        return cnp.PyArray_EMPTY(ndim, shape, type_number, 0)
    theirs = PyDataMem_GetHandler()
    if <PyObject *>theirs != PyDataMem_DefaultHandler:  # the user wants memory of another kind
        return cnp.PyArray_EMPTY(ndim, shape, type_number, 0)
    context = PyContext_Copy(our_context)  # one that is entered cannot be by another thread
    PyContext_Enter(context)
    try:
        return cnp.PyArray_EMPTY(ndim, shape, type_number, 0)
    finally:
        PyContext_Exit(context)


cdef int take_flag() except -1:
    while not cbnorm_try(&taken):
        time.sleep(0)   # its holder needs no GIL, and calls nothing that waits
    return 0


def set_limit(size_t size):
    """Keep so many bytes at most."""
    global limit
    cdef Block *removed[SLOTS]
    take_flag()
    limit = size
    look_soon()  # what is short depends on it
    number = remove_oldest(size, SLOTS, removed)
    cbnorm_leave(&taken)
    release(removed, number)


def get_limit():
    """Bytes that are kept at most."""
    return limit


def bytes_kept():
    """Bytes that are kept now."""
    return kept_bytes


def empty():
    """Give all that is kept back to the system; returns how many bytes."""
    cdef Block *removed[SLOTS]
    take_flag()
    number = remove_oldest(0, 0, removed)
    cbnorm_leave(&taken)
    return release(removed, number)


def after_fork():
    """Forget what is kept, in a child: pages that it shares with its parent are slower than new ones."""
    global count, kept_bytes
    if cbnorm_try(&taken):
        cbnorm_leave(&taken)
        empty()
    else:   # another thread of the parent's was at it, and left the list who knows how
        count = 0
        kept_bytes = 0
        cbnorm_leave(&taken)
