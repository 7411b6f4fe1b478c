/*
 * control.h - the control socket: QMP's wire form (UNIX stream socket, JSON objects, descriptors by
 * SCM_RIGHTS with the command) on any number of connections. README.md has the commands.
 */
#ifndef MINIVM_CONTROL_H
#define MINIVM_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "vm.h"

struct control;

/* `why` takes what went wrong, as for vm_open(). */
struct control *control_open(struct vm *vm, char *why, size_t why_bytes);
/* A server socket: its descriptor, or -1. One that is left over from a dead process is replaced. */
int control_socket(const char *path, char *why, size_t why_bytes);
/* Serves there: our own commands, or Firecracker's API (api.h). */
bool control_listen(struct control *c, const char *path, char *why, size_t why_bytes);
bool control_listen_api(struct control *c, const char *path, char *why, size_t why_bytes);
/* A client: the other side is served as if it had connected to us. */
bool control_connect(struct control *c, const char *path, char *why, size_t why_bytes);

/* Serves until `quit`, SIGTERM or SIGINT (true), or until the guest died (false). */
bool control_run(struct control *c);

/* Tells everyone. `data` may be NULL; it is taken over. */
void control_event(struct control *c, const char *name, json_t *data);
void control_quit(struct control *c);
struct vm *control_vm(struct control *c);

#endif
