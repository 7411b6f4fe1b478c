/*
 * What kernel_probe() says of this kernel is what this kernel does, and test builds can hide each
 * feature by its name.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/kernel.h"
#include "common/uffd.h"
#include "ktest.h"

#define MAX_ITEMS 32

/* Asking for a feature that the kernel lacks is refused. */
static bool kernel_takes(uint64_t feature)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    int r = fd < 0 ? -errno : uffd_enable(fd, feature);
    if (fd >= 0)
        close(fd);
    return r == 0;
}

static int says_what_is(const void *arg)
{
    (void)arg;
    struct utsname u;
    struct kernel_item items[MAX_ITEMS];
    const struct kernel_features *f = kernel_probe();
    size_t n = kernel_list(items, MAX_ITEMS);
    uname(&u);
    printf("    Linux %s:", u.release);
    for (size_t i = 0; i < n; i++)
        printf(" %s%s", items[i].ok ? "" : "no ", items[i].name + strlen("kernel."));
    printf("\n");
    KTEST_SKIP_IF(getenv("VMSNAP_MASK_FEATURES"), "features are hidden");
    KTEST_SKIP_IF(!f->userfaultfd, "no userfaultfd");
    KTEST_CHECK(f->wp_anon == kernel_takes(UFFD_FEATURE_PAGEFAULT_FLAG_WP), "wp-anon");
    KTEST_CHECK(f->wp_shmem == kernel_takes(UFFD_FEATURE_WP_HUGETLBFS_SHMEM), "wp-shmem");
    KTEST_CHECK(f->minor_shmem == kernel_takes(UFFD_FEATURE_MINOR_SHMEM), "minor-shmem");
    KTEST_CHECK(f->poison == kernel_takes(UFFD_FEATURE_POISON), "poison");
    KTEST_CHECK(f->event_remove ==
                    kernel_takes(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP),
                "event-remove");
    KTEST_CHECK(f->dev_userfaultfd == (access("/dev/userfaultfd", R_OK | W_OK) == 0),
                "dev-userfaultfd");
    int major = atoi(u.release), minor = atoi(strchr(u.release, '.') + 1);
    int version = major * 1000 + minor;
    KTEST_CHECK(version < 6006 || f->poison, "Linux %s has UFFDIO_POISON", u.release);
    KTEST_CHECK(f->pagemap_scan == (version >= 6007), "Linux %s and PAGEMAP_SCAN", u.release);
    KTEST_CHECK(version < 6001 || f->collapse, "Linux %s has MADV_COLLAPSE", u.release);
    return KTEST_PASS;
}

static int can_work(const void *arg)
{
    (void)arg;
    struct error e = {0};
    KTEST_CHECK(kernel_require(&e) == 0, "%s", e.message);
    return KTEST_PASS;
}

/* What the program does when it is started with a feature hidden. 0: as it should be. */
static int hidden(const char *name)
{
    struct kernel_item items[MAX_ITEMS];
    struct error e = {0};
    size_t n = kernel_list(items, MAX_ITEMS);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(items[i].name + strlen("kernel."), name) != 0)
            continue;
        if (items[i].ok)
            return 2;
        int r = kernel_require(&e);
        if ((r != 0) != items[i].required)
            return 3;
        if (r && (r != -ENOTSUP || e.exit_code != VMSNAP_EXIT_KERNEL || !strstr(e.message, name)))
            return 4;
        return 0;
    }
    return 5;
}

/* In a new program, since the answer is kept. */
static int start_hidden(void *opaque)
{
    char *name = opaque;
    setenv("VMSNAP_MASK_FEATURES", name, 1);
    char *argv[] = {"probe", "--hidden", name, NULL};
    execv("/proc/self/exe", argv);
    return 1;
}

static int hide_each(const void *arg)
{
    (void)arg;
#ifndef VMSNAP_TEST_HOOKS
    KTEST_SKIP_IF(true, "built without test hooks");
#endif
    struct kernel_item items[MAX_ITEMS];
    size_t n = kernel_list(items, MAX_ITEMS);
    KTEST_CHECK(n >= 10, "%zu items", n);
    for (size_t i = 0; i < n; i++) {
        char name[64];
        snprintf(name, sizeof(name), "%s", items[i].name + strlen("kernel."));
        int status = ktest_reap(ktest_spawn(start_hidden, name), 10000);
        KTEST_CHECK(status == 0, "hiding %s: status 0x%x", name, status);
    }
    return KTEST_PASS;
}

int main(int argc, char **argv)
{
    const struct ktest_case cases[] = {
        {"says what is", says_what_is, NULL},
        {"can work", can_work, NULL},
        {"each feature can be hidden", hide_each, NULL},
    };
    if (argc == 3 && strcmp(argv[1], "--hidden") == 0)
        return hidden(argv[2]);
    return ktest_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
