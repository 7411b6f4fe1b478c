#include "tools/vmsnap/service.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/log.h"

#define LIBRARY "libsystemd.so.0"
#define BARRIER_US 5000000u
#define TEXT_MAX 512

static struct {
    /* NULL: nobody listens. */
    int (*notify)(pid_t pid, int unset_environment, const char *state);
    int (*barrier)(int unset_environment, uint64_t timeout_us);
    pid_t main_pid;
} service;

/* The library stays open: it is in use until the end. */
static bool open_library(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return false;
    /* As dlsym(3) shows it: C knows no conversion from a data pointer to a function's. */
    *(void **)&service.notify = dlsym(library, "sd_pid_notify");
    *(void **)&service.barrier = dlsym(library, "sd_notify_barrier"); /* libsystemd 246 */
    return service.notify;
}

void service_open(void)
{
    const char *address = getenv("NOTIFY_SOCKET");
    service.main_pid = getpid();
    if (address && *address && !open_library())
        log_warn("the service manager waits for a word (NOTIFY_SOCKET), and " LIBRARY
                 " can't be opened: it is not told");
}

bool service_possible(const char **why)
{
    void *library = dlopen(LIBRARY, RTLD_LAZY | RTLD_LOCAL);
    *why = library ? LIBRARY : LIBRARY " can't be opened";
    if (library)
        dlclose(library);
    return library;
}

/* `assignments`, and STATUS with the text. */
static void say(const char *assignments, const char *fmt, va_list ap)
{
    char status[TEXT_MAX], text[TEXT_MAX + 64];
    if (!service.notify)
        return;
    vsnprintf(status, sizeof(status), fmt, ap);
    snprintf(text, sizeof(text), "%sSTATUS=%s", assignments, status);
    int rc = service.notify(service.main_pid, 0, text);
    if (rc < 0)
        log_debug("the service manager can't be told: error %d", -rc);
}

void service_status(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("", fmt, ap);
    va_end(ap);
}

void service_ready(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("READY=1\n", fmt, ap);
    va_end(ap);
}

void service_ready_as(pid_t main_pid)
{
    char text[64];
    if (!service.notify)
        return;
    snprintf(text, sizeof(text), "MAINPID=%d\nREADY=1", (int)main_pid);
    service.notify(service.main_pid, 0, text);
    if (service.barrier)
        service.barrier(0, BARRIER_US);
}

void service_stopping(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    say("STOPPING=1\n", fmt, ap);
    va_end(ap);
}

void service_leave(void)
{
    service.notify = NULL;
}
