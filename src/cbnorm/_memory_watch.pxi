# Whether memory is short: what the machine and the control groups of this process have left.
# Read with C's own functions, as it happens where an array is freed. All under the flag of the list.

from libc cimport errno
from libc.limits cimport LLONG_MAX
from libc.stdio cimport FILE, fclose, fgets, fopen
from libc.stdlib cimport strtoll
from libc.string cimport strcpy, strlen, strncmp

cdef enum:
    GROUPS = 8
    LONGEST = 1024      # path of a control group's file
    INTERVAL = 100      # milliseconds between two looks

cdef struct Group:      # a control group with a limit
    char[LONGEST] usage
    char[LONGEST] stat
    long long limit

cdef bint short_of_memory = False
cdef long long looked = -INTERVAL   # milliseconds
cdef char[LONGEST] meminfo
cdef Group[GROUPS] groups
cdef int group_count = 0
cdef long long total = 0        # bytes that the process may use at all


cdef long long number_in(const char *path, const char *word) noexcept nogil:
    """The number after a word at the start of a line; -1 where there is none."""
    cdef char[256] line
    cdef size_t length = strlen(word)
    cdef long long number = -1
    cdef FILE *file = fopen(path, "re")
    if file == NULL:
        return number
    while fgets(line, sizeof(line), file) != NULL:
        if strncmp(line, word, length) == 0:
            number = strtoll(line + length, NULL, 10)
            break
    fclose(file)
    return number


cdef void look_at_memory(size_t wanted) noexcept nogil:
    """Say whether memory is short: what is left would not hold what is kept twice, or is under a sixteenth of all."""
    global looked, short_of_memory
    cdef long long now = cbnorm_milliseconds()
    cdef long long left, usage
    cdef int before = errno.errno   # whoever frees may have yet to read it
    if now == 0 or now - looked < INTERVAL:
        return
    looked = now
    left = number_in(meminfo, "MemAvailable:")
    left = 1024 * left if left >= 0 else LLONG_MAX
    for i in range(group_count):
        usage = number_in(groups[i].usage, "")
        if usage >= 0:
            # Usage counts the page cache: files not read of late are as good as free. Version 1, version 2:
            usage -= max(number_in(groups[i].stat, "total_inactive_file "),
                         number_in(groups[i].stat, "inactive_file "), 0)
            left = min(left, groups[i].limit - usage)
    short_of_memory = left < total // 16 or left // 2 < <long long>wanted
    errno.errno = before


cdef void look_soon() noexcept nogil:
    global looked
    looked = -INTERVAL


def watch(meminfo_path, limited_groups, long long all_bytes):
    """Where to look whether memory is short: a /proc/meminfo, control groups as (limit, usage file, stat file)."""
    global group_count, total
    encoded = [(limit, *map(os.fsencode, paths)) for limit, *paths in limited_groups]
    watched = sorted(group for group in encoded if max(map(len, group[1:])) < LONGEST)[:GROUPS]     # the tightest
    path = os.fsencode(meminfo_path)
    take_flag()
    strcpy(meminfo, path if len(path) < LONGEST else b"")
    group_count = 0
    for limit, usage, stat in watched:
        groups[group_count].limit = limit
        strcpy(groups[group_count].usage, usage)
        strcpy(groups[group_count].stat, stat)
        group_count += 1
    total = all_bytes
    look_soon()
    cbnorm_leave(&taken)
