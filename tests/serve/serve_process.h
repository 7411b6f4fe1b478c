/* serve_process.h - the process that is restored. */
#ifndef VMSNAP_TESTS_SERVE_PROCESS_H
#define VMSNAP_TESTS_SERVE_PROCESS_H

#include "tests/serve/serve_kit.h"

/* Its main(): opaque is the struct kit_board. */
int serve_process(void *opaque);

#endif
