/* Memory that goes away under a writer's hands: an error, in any thread, and no
 * end of the process. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/thread.h"
#include "restore/memory/window.h"

#define BYTES (64u << 10)

static struct block make_block(void)
{
    struct block b = {.bytes = BYTES, .unit_bytes = IMAGE_CLUSTER_BYTES};
    b.region.page_bytes = IMAGE_PAGE_BYTES;
    b.region.fd = memfd_create("window", MFD_CLOEXEC);
    cr_assert(b.region.fd >= 0 && ftruncate(b.region.fd, BYTES) == 0);
    b.window = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, b.region.fd, 0);
    cr_assert(b.window != MAP_FAILED);
    return b;
}

static void free_block(struct block *b)
{
    munmap(b->window, BYTES);
    close(b->region.fd);
}

static int write_all(void *opaque)
{
    memset(opaque, 7, BYTES);
    return 0;
}

static int say_seven(void *opaque)
{
    (void)opaque;
    return 7;
}

Test(window, what_is_written_is_in_the_file)
{
    struct block b = make_block();
    char out[3];
    cr_assert_eq(window_write(&b, 5 * IMAGE_PAGE_BYTES, "abc", 3), 0);
    cr_assert_eq(pread(b.region.fd, out, 3, 5 * IMAGE_PAGE_BYTES), 3);
    cr_assert_eq(memcmp(out, "abc", 3), 0);
    cr_assert_eq(window_empty(&b, 4 * IMAGE_PAGE_BYTES, IMAGE_CLUSTER_BYTES), 0);
    cr_assert_eq(pread(b.region.fd, out, 3, 5 * IMAGE_PAGE_BYTES), 3);
    cr_assert_eq(memcmp(out, "\0\0", 3), 0);
    free_block(&b);
}

Test(window, a_file_that_was_cut_is_an_error)
{
    struct block b = make_block();
    cr_assert_eq(window_guard(write_all, b.window), 0);
    cr_assert_eq(ftruncate(b.region.fd, BYTES / 2), 0);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(window_guard(write_all, b.window), -EFAULT);
        cr_assert_eq(window_guard(say_seven, NULL), 7);
    }
    cr_assert_eq(window_populate(&b, BYTES / 2, IMAGE_CLUSTER_BYTES), -EFAULT);
    cr_assert_eq(window_write(&b, BYTES / 2, "abc", 3), -ENOSPC);
    cr_assert_eq(window_write(&b, 0, "abc", 3), 0);
    free_block(&b);
}

static void *write_in_thread(void *opaque)
{
    struct block *b = opaque;
    return (void *)(intptr_t)window_guard(write_all, b->window);
}

/* It begins with all signals blocked, where the kernel's SIGBUS would kill. */
Test(window, in_a_thread_too)
{
    struct block b = make_block();
    pthread_t thread;
    void *result = NULL;
    cr_assert_eq(ftruncate(b.region.fd, 0), 0);
    cr_assert_eq(thread_start(&thread, write_in_thread, &b), 0);
    pthread_join(thread, &result);
    cr_assert_eq((intptr_t)result, -EFAULT);
    free_block(&b);
}

/* Outside of a guard it is what it always was. */
/* cppcheck-suppress unknownMacro */
Test(window, a_bus_error_of_ones_own_ends_the_process, .signal = SIGBUS)
{
    struct block b = make_block();
    cr_assert_eq(window_guard(say_seven, NULL), 7);
    cr_assert_eq(ftruncate(b.region.fd, 0), 0);
    b.window[0] = 1;
}
