/* handlers.h - page-fault handlers of Firecracker's handoff that do what its examples do. */
#ifndef VMSNAP_TOOLS_BENCH_HANDLERS_H
#define VMSNAP_TOOLS_BENCH_HANDLERS_H

#include "common/error.h"

struct handler_kind;

/* By name: "on_demand", "on_demand_lazy", "fault_all"; NULL: there is none such. */
const struct handler_kind *handlers_find(const char *name);

/*
 * Listens on the UNIX socket `socket_path`, prints {"type": "ready"}, and serves the one VM that
 * connects from the memory file `path`, until stdin is closed; then it prints a summary: faults
 * read, pages put in (bytes), ranges given back, failures, and in CLOCK_MONOTONIC when the
 * connection was there, the file mapped, the first fault answered, all memory in (0: never). 0 or
 * -errno.
 */
int handlers_run(const struct handler_kind *kind, const char *socket_path, const char *path,
                 struct error *e);

#endif
