#include "restore/decode/rest.h"

#define PIECES_A_LOOK 16u /* some 0.6 ms of work */
#define FAIR 3u /* it may wait for so many times as long as it runs: the guest, the server */
#define TIMES_AS_LONG 10u
#define OF_OLD 4u /* a look counts 3/4 of it in the next: ran_ns comes in ticks */
#define LEAST_MS 2u
#define MOST_MS 50u /* by then it may be over */

void rest_begin(struct rest *r)
{
    *r = (struct rest){0};
    run_delay_open(&r->delay);
}

void rest_end(struct rest *r)
{
    run_delay_close(&r->delay);
}

unsigned rest_due_ms(struct rest *r)
{
    if (++r->n < PIECES_A_LOOK)
        return 0;
    r->n = 0;
    struct cpu_times since = run_delay_take(&r->delay), *lately = &r->lately;
    lately->ran_ns = (OF_OLD - 1) * lately->ran_ns / OF_OLD + since.ran_ns;
    lately->waited_ns = (OF_OLD - 1) * lately->waited_ns / OF_OLD + since.waited_ns;
    if (lately->waited_ns > FAIR * lately->ran_ns)
        r->due_ns += TIMES_AS_LONG * (lately->waited_ns - FAIR * lately->ran_ns) / OF_OLD;
    uint64_t ms = r->due_ns / 1000000;
    if (ms < LEAST_MS)
        return 0;
    r->due_ns = 0;
    return ms < MOST_MS ? (unsigned)ms : MOST_MS;
}
