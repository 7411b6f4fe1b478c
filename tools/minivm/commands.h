/* commands.h - what can be asked for over the control socket. */
#ifndef MINIVM_COMMANDS_H
#define MINIVM_COMMANDS_H

#include "control.h"

struct request {
    struct control *control;
    struct vm *vm;
    json_t *arguments; /* an object or NULL; borrowed */
    int fd;            /* came with the command, or -1; whoever calls the command closes it */
    char problem[200]; /* set by a command that fails */
};

struct command {
    const char *name;
    bool takes_fd;
    json_t *(*run)(struct request *r); /* a new reference, or NULL with `problem` */
};

/* The VM stops, or goes on, and everyone is told. Nothing if it is so already, and false. */
bool commands_stop(struct control *c, struct vm *vm);
void commands_cont(struct control *c, struct vm *vm);

const struct command *commands_find(const char *name);

json_t *request_fail(struct request *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
