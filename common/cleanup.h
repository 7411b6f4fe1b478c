/* cleanup.h - scope-bound release of what is commonly held: fds, heap memory, streams. */
#ifndef VMSNAP_COMMON_CLEANUP_H
#define VMSNAP_COMMON_CLEANUP_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_close_fd(const int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void cleanup_free_ptr(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_close_stream(FILE **f)
{
    if (*f)
        fclose(*f);
}

#define CLEANUP_FD __attribute__((cleanup(cleanup_close_fd)))
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free_ptr)))
#define CLEANUP_STREAM __attribute__((cleanup(cleanup_close_stream)))

/* Hands an fd out of its scope: `return take_fd(&fd);` */
static inline int take_fd(int *fd)
{
    int out = *fd;
    *fd = -1;
    return out;
}

static inline void *take_ptr_raw(void *p)
{
    void *out = *(void **)p;
    *(void **)p = NULL;
    return out;
}

/* Hands an allocation out of its scope: `*out = take_ptr(&p);` */
#define take_ptr(p) ((__typeof__(*(p)))take_ptr_raw(p))

#endif
