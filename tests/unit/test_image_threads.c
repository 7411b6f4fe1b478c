/*
 * Threads compress and add clusters of one image at once, in no order, some of them twice; the
 * image holds each of them and verifies on several threads. A plain program, so that it can run
 * under ThreadSanitizer.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/codec.h"
#include "common/image/reader.h"
#include "common/image/writer.h"

#define N_THREADS 4
#define N_CLUSTERS 6000u

static struct image_writer *writer;
static _Atomic uint64_t next;

/* Every fifth cluster is zero; every third carries noise, so that frames differ in length. */
static void make_cluster(uint64_t cluster, uint8_t *out)
{
    memset(out, 0, IMAGE_CLUSTER_BYTES);
    if (cluster % 5 == 0)
        return;
    uint64_t x = cluster * 0x9e3779b97f4a7c15ull | 1;
    for (size_t i = 0; i < IMAGE_CLUSTER_BYTES; i += cluster % 3 ? 64 : 8) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(out + i, &x, sizeof(x));
    }
}

static void add(struct codec *codec, uint64_t cluster)
{
    _Alignas(8) uint8_t record[sizeof(struct image_record) + IMAGE_FRAME_MAX];
    uint8_t plain[IMAGE_CLUSTER_BYTES];
    make_cluster(cluster, plain);
    if (codec_is_zero(plain, sizeof(plain))) {
        image_writer_add_zero(writer, cluster);
        return;
    }
    int n = codec_encode(codec, plain, sizeof(plain), record + sizeof(struct image_record));
    if (n < 0 || image_writer_add(writer, cluster, record, (uint32_t)n, IMAGE_CLUSTER_PAGES))
        abort();
}

static void *compress(void *opaque)
{
    (void)opaque;
    struct codec *codec = codec_new(1);
    uint64_t i;
    if (!codec)
        abort();
    while ((i = atomic_fetch_add(&next, 1)) < N_CLUSTERS) {
        uint64_t cluster = i * 1231 % N_CLUSTERS; /* coprime: each once, far from in order */
        add(codec, cluster);
        if (cluster % 100 == 7)
            add(codec, cluster);
    }
    codec_free(codec);
    return NULL;
}

static int write_image(const char *path)
{
    pthread_t threads[N_THREADS];
    struct error e = {0};
    struct sink *sink;
    const struct sink_options options = {.overwrite = true, .n_buffers = 5};
    const struct region region = {.name = "ram",
                                  .bytes = (uint64_t)N_CLUSTERS * IMAGE_CLUSTER_BYTES,
                                  .page_bytes = 4096,
                                  .kind = REGION_ANON};
    const struct image_finish finish = {.description = "{}"};
    int r = sink_open_file(&sink, path, &options, &e);
    if (r == 0)
        r = image_writer_open(&writer, sink, &region, 1, &e);
    for (int i = 0; i < N_THREADS && r == 0; i++)
        r = -pthread_create(&threads[i], NULL, compress, NULL);
    for (int i = 0; i < N_THREADS && r == 0; i++)
        pthread_join(threads[i], NULL);
    if (r == 0)
        r = image_writer_finish(writer, &finish, &e);
    if (r == 0)
        r = sink_commit(sink, &e);
    if (r)
        fprintf(stderr, "writing: %s\n", e.message);
    image_writer_close(writer);
    return sink_close(sink) || r;
}

static int check_image(const char *path)
{
    struct image *img;
    struct error e = {0};
    struct codec *codec = codec_new(1);
    struct image_verify_result result;
    const struct image_verify_calls calls = {0};
    unsigned wrong = 0;
    if (image_open(&img, path, &e) || image_verify(img, N_THREADS, &calls, &result, &e)) {
        fprintf(stderr, "reading: %s\n", e.message);
        return 1;
    }
    for (uint64_t c = 0; c < N_CLUSTERS; c++) {
        uint8_t got[IMAGE_CLUSTER_BYTES], expected[IMAGE_CLUSTER_BYTES];
        make_cluster(c, expected);
        wrong += image_read_cluster(img, c, codec, got, &e) != 0 ||
                 memcmp(got, expected, sizeof(got)) != 0;
    }
    uint64_t file_bytes = image_get_trailer(img)->file_bytes;
    printf("%u of %u clusters wrong, %llu of %llu bytes read\n", wrong, N_CLUSTERS,
           (unsigned long long)result.bytes_read, (unsigned long long)file_bytes);
    image_close(img);
    codec_free(codec);
    return wrong != 0 || result.bytes_read < file_bytes ||
           result.bytes_read > file_bytes + file_bytes / 8;
}

int main(void)
{
    char path[] = "/var/tmp/vmsnap-image-threads-XXXXXX";
    close(mkstemp(path));
    int failed = write_image(path) || check_image(path);
    unlink(path);
    return failed;
}
