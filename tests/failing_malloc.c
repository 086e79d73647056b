/* A malloc that fails when it is told to: test_exhaustion.py preloads it. It needs glibc. */

#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t boundary, size_t size);
void __libc_free(void *memory);

static size_t least = 1; /* bytes: smaller ones never fail, and are not counted */
static long seen, first = -1, last = -1;
static long live;

/* Let the allocations of at least so many bytes with the numbers from `from` to `to`, counted from 0, fail. */
void fail(size_t bytes, long from, long to) {
    least = bytes;
    seen = 0;
    last = to;
    first = from;
}

/* Let none fail; returns how many there were. */
long stop(void) {
    first = last = -1;
    return seen;
}

/* Blocks of at least 4096 bytes that nobody has freed. */
long blocks(void) { return __atomic_load_n(&live, __ATOMIC_RELAXED); }

static int fails(size_t size) {
    long number;
    if (first < 0 || size < least)
        return 0;
    number = __atomic_fetch_add(&seen, 1, __ATOMIC_RELAXED);
    if (number < first || number > last)
        return 0;
    errno = ENOMEM;
    return 1;
}

static void *counted(void *memory, long by) {
    if (memory && malloc_usable_size(memory) >= 4096)
        __atomic_fetch_add(&live, by, __ATOMIC_RELAXED);
    return memory;
}

void *malloc(size_t size) { return fails(size) ? NULL : counted(__libc_malloc(size), 1); }

void *calloc(size_t count, size_t size) {
    return fails(count * size) ? NULL : counted(__libc_calloc(count, size), 1);
}

void *realloc(void *memory, size_t size) {
    void *moved;
    if (fails(size))
        return NULL;
    counted(memory, -1);
    moved = __libc_realloc(memory, size);
    if (moved == NULL && size > 0)
        counted(memory, 1);
    return counted(moved, 1);
}

void *memalign(size_t boundary, size_t size) {
    return fails(size) ? NULL : counted(__libc_memalign(boundary, size), 1);
}

void *aligned_alloc(size_t boundary, size_t size) { return memalign(boundary, size); }

int posix_memalign(void **memory, size_t boundary, size_t size) {
    *memory = memalign(boundary, size);
    return *memory ? 0 : ENOMEM;
}

void free(void *memory) {
    counted(memory, -1);
    __libc_free(memory);
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset) {
    void *memory = MAP_FAILED;
    if (!fails(size))
        memory = (void *)syscall(SYS_mmap, address, size, protection, flags, file, offset);
    if (memory != MAP_FAILED)
        __atomic_fetch_add(&live, 1, __ATOMIC_RELAXED);
    return memory;
}

int munmap(void *address, size_t size) {
    int status = (int)syscall(SYS_munmap, address, size);
    if (status == 0)
        __atomic_fetch_add(&live, -1, __ATOMIC_RELAXED);
    return status;
}
