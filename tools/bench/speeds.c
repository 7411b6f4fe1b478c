/* speeds.c - see speeds.h. Threads take shares of the work by a common cursor; one share is what
 * vmsnap's workers take at a time. */
#include "tools/bench/speeds.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/histogram.h"
#include "common/image/reader.h"
#include "common/thread.h"
#include "common/uffd.h"

#define SHARE_CLUSTERS 4u

/* One run: n_threads times work(), from the first one's start to the last one's end. */
struct crew {
    void *(*work)(void *worker);
    atomic_ullong cursor;
    atomic_int error; /* the first -errno */
    const struct image *img;
    uint64_t n_clusters;
    int uffd;
    uint64_t start, bytes, piece_bytes;
};

struct worker {
    struct crew *crew;
    pthread_t thread;
    uint64_t clusters, bytes;
    struct histogram times;
};

static void note_error(struct crew *crew, int err)
{
    int none = 0;
    atomic_compare_exchange_strong(&crew->error, &none, err);
}

static void add_up(struct worker *sum, const struct worker *w)
{
    sum->clusters += w->clusters;
    sum->bytes += w->bytes;
    histogram_merge(&sum->times, &w->times);
}

/* Runs them all, and adds up in *sum what they did; *ns: how long it took. 0 or
 * the first -errno. */
static int run_crew(struct crew *crew, unsigned n, struct worker *sum, uint64_t *ns)
{
    struct worker *workers = calloc(n, sizeof(*workers));
    if (!workers)
        return -ENOMEM;
    uint64_t began_ns = clock_monotonic_ns();
    unsigned started = 0;
    for (; started < n; started++) {
        workers[started].crew = crew;
        int ret = thread_start(&workers[started].thread, crew->work, &workers[started]);
        if (ret) {
            note_error(crew, ret);
            break;
        }
    }
    while (started > 0) {
        pthread_join(workers[--started].thread, NULL);
        add_up(sum, &workers[started]);
    }
    *ns = clock_monotonic_ns() - began_ns;
    free(workers);
    return atomic_load(&crew->error);
}

/* ---- decoding ---- */

static int decode_one(struct worker *w, struct codec *codec, uint64_t cluster, void *buffer)
{
    uint64_t began_ns = clock_monotonic_ns();
    int ret = image_read_cluster(w->crew->img, cluster, codec, buffer, NULL);
    if (ret)
        return ret;
    histogram_add(&w->times, clock_monotonic_ns() - began_ns);
    w->clusters++;
    w->bytes += image_cluster_bytes(w->crew->img, cluster);
    return 0;
}

static int decode_share(struct worker *w, struct codec *codec, uint64_t first, void *buffer)
{
    struct crew *crew = w->crew;
    int ret = 0;
    for (uint64_t c = first; c < first + SHARE_CLUSTERS && c < crew->n_clusters && !ret; c++)
        if (image_index_entry(crew->img, c) != IMAGE_INDEX_ZERO)
            ret = decode_one(w, codec, c, buffer);
    return ret;
}

static void *decode_all(void *opaque)
{
    struct worker *w = opaque;
    struct crew *crew = w->crew;
    unsigned char buffer[IMAGE_CLUSTER_BYTES];
    struct codec *codec = codec_new(1);
    if (!codec)
        note_error(crew, -ENOMEM);
    while (!atomic_load_explicit(&crew->error, memory_order_relaxed)) {
        uint64_t first = atomic_fetch_add(&crew->cursor, SHARE_CLUSTERS);
        if (first >= crew->n_clusters)
            break;
        int ret = decode_share(w, codec, first, buffer);
        if (ret)
            note_error(crew, ret);
    }
    codec_free(codec);
    return NULL;
}

int speeds_decode(const char *image, unsigned n_threads, struct error *e)
{
    struct crew crew = {.work = decode_all};
    struct image *img;
    int ret = image_open(&img, image, e);
    if (ret)
        return ret;
    crew.img = img;
    crew.n_clusters = image_get_trailer(img)->n_clusters;
    static struct worker sum; /* too large for a stack */
    uint64_t ns = 0;
    ret = run_crew(&crew, n_threads, &sum, &ns);
    image_close(img);
    if (ret)
        return error_set(e, VMSNAP_EXIT_FAILED, -ret, "cannot decode %s", image);
    printf("{\"type\": \"decode\", \"bytes\": %" PRIu64 ", \"ns\": %" PRIu64
           ", \"clusters\": %" PRIu64 ", \"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64 "}\n",
           sum.bytes, ns, sum.clusters, histogram_quantile(&sum.times, 0.5),
           histogram_quantile(&sum.times, 0.99));
    return 0;
}

/* ---- copying ---- */

static void *copy_all(void *opaque)
{
    struct worker *w = opaque;
    struct crew *crew = w->crew;
    unsigned char *piece = malloc(crew->piece_bytes);
    if (!piece) {
        note_error(crew, -ENOMEM);
        return NULL;
    }
    memset(piece, 0x5a, crew->piece_bytes);
    while (!atomic_load_explicit(&crew->error, memory_order_relaxed)) {
        uint64_t at = atomic_fetch_add(&crew->cursor, crew->piece_bytes);
        if (at >= crew->bytes)
            break;
        uint64_t left = crew->bytes - at;
        int ret = uffd_copy(crew->uffd, crew->start + at, piece,
                            left < crew->piece_bytes ? left : crew->piece_bytes, true, NULL);
        if (ret)
            note_error(crew, ret);
    }
    free(piece);
    return NULL;
}

/* In a child: the memory is its parent's. */
static int copy_from_here(struct crew *crew, unsigned n_threads)
{
    static struct worker sum;
    uint64_t ns = 0;
    int ret = run_crew(crew, n_threads, &sum, &ns);
    if (ret) {
        fprintf(stderr, "vmsnap-bench: UFFDIO_COPY: %s\n", strerror(-ret));
        return 1;
    }
    printf("{\"type\": \"copy\", \"bytes\": %" PRIu64 ", \"ns\": %" PRIu64 "}\n", crew->bytes, ns);
    return fflush(stdout) ? 1 : 0;
}

static int copy_from_child(struct crew *crew, unsigned n_threads, struct error *e)
{
    pid_t child = fork();
    if (child < 0)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "cannot fork");
    if (child == 0)
        _exit(copy_from_here(crew, n_threads));
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        return error_set(e, VMSNAP_EXIT_FAILED, EIO, "the copying process failed");
    return 0;
}

int speeds_copy(uint64_t bytes, uint64_t piece_bytes, unsigned n_threads, struct error *e)
{
    struct crew crew = {.work = copy_all, .bytes = bytes, .piece_bytes = piece_bytes};
    CLEANUP_FD int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0)
        return error_set(e, VMSNAP_EXIT_KERNEL, errno, "cannot make a userfaultfd");
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "no memory to fill");
    crew.uffd = uffd;
    crew.start = (uint64_t)(uintptr_t)memory;
    int ret = uffd_enable(uffd, 0);
    if (!ret)
        ret = uffd_register(uffd, crew.start, bytes, UFFDIO_REGISTER_MODE_MISSING, NULL);
    ret = ret ? error_set(e, VMSNAP_EXIT_KERNEL, -ret, "cannot register memory")
              : copy_from_child(&crew, n_threads, e);
    munmap(memory, bytes);
    return ret;
}
