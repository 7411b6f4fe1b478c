/*
 * Threads take and give back buffers as fast as they can, with fewer buffers than threads want: no
 * buffer is ever held by two, none is lost, and nobody waits for ever. A plain program, so that it
 * can run under ThreadSanitizer.
 */
#include <stdio.h>
#include <stdlib.h>

#include "common/pool.h"
#include "common/thread.h"

#define N_THREADS 6
#define N_BUFFERS 4
#define ROUNDS 20000

static struct pool pool;
static atomic_int owners[N_BUFFERS];
static atomic_int wrong;

static void *worker(void *opaque)
{
    enum pool_class class = opaque ? POOL_FAULT : POOL_SWEEP;
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t b = pool_take(&pool, class);
        if (b >= N_BUFFERS || atomic_fetch_add(&owners[b], 1) != 0)
            atomic_fetch_add(&wrong, 1);
        if (b < N_BUFFERS) {
            atomic_fetch_sub(&owners[b], 1);
            pool_put(&pool, b);
        }
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[N_THREADS];
    if (pool_init(&pool, N_BUFFERS, 4096, 1))
        return 1;
    for (int i = 0; i < N_THREADS; i++)
        if (thread_start(&threads[i], worker, i % 2 ? &pool : NULL))
            return 1;
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    int left = atomic_load(&pool.available);
    printf("%d wrong, %d of %d buffers back\n", atomic_load(&wrong), left, N_BUFFERS);
    pool_free(&pool);
    return atomic_load(&wrong) == 0 && left == N_BUFFERS ? 0 : 1;
}
