/* writing.h - what the commands that write a large file have in common:
 * snapshot, import, export. */
#ifndef VMSNAP_TOOLS_WRITING_H
#define VMSNAP_TOOLS_WRITING_H

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/sink/sink.h"
#include "tools/vmsnap/options.h"

/* Rows of the table of options of a command that makes an image; each is given where to put it. */
#define WRITING_LEVEL(TO)                                                                          \
    {                                                                                              \
        .name = "level", .kind = OPTION_INTEGER, .to.integer = (TO), .min = 1, .max = 19,          \
        .argument = "N", .help = "zstd level, 1 to 19 (default 1)"                                 \
    }
#define WRITING_THREADS(TO)                                                                        \
    {                                                                                              \
        .name = "threads", .kind = OPTION_COUNT, .to.count = (TO), .min = 1, .max = 256,           \
        .argument = "N", .help = "compressor threads (default: one per CPU)"                       \
    }
#define WRITING_BWLIMIT(TO)                                                                        \
    {                                                                                              \
        .name = "bwlimit", .kind = OPTION_SIZE, .to.size = (TO), .min = SINK_MIN_RATE,             \
        .max = INT64_MAX, .argument = "RATE",                                                      \
        .help = "write at most this many bytes per second (64K or more; K, M, G as in sizes)"      \
    }
#define WRITING_OVERWRITE(TO)                                                                      \
    {                                                                                              \
        .name = "overwrite", .kind = OPTION_FLAG, .to.flag = (TO),                                 \
        .help = "replace IMAGE if it exists, once the new one is complete"                         \
    }

/* `file` is the operand: - is refused (usage error) where stdout is a terminal. `what` would go
 * there: "an image". */
int writing_check_terminal(const char *file, const char *what, struct error *e);

/* Says (log) what a summary warns of, unless it is printed as JSON. False: of nothing. */
bool writing_print_warnings(const json_t *summary);

#endif
