/*
 * line.h - reads a QEMU command line the way QEMU does: which words are options, which are their
 * values, and what is inside a value. A line may begin with a wrapper (ip netns exec, runuser,
 * systemd-run --scope): the options are those after the VMM's own name.
 */
#ifndef VMSNAP_RESTORE_QEMU_LINE_H
#define VMSNAP_RESTORE_QEMU_LINE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct qemu_option {
    size_t at;         /* index of the option's word in argv */
    size_t n_words;    /* 1, or 2 with a value */
    const char *name;  /* without its dashes; "" for a bare word (a disk image) */
    const char *value; /* NULL: none */
};

struct qemu_line {
    char *const *argv; /* borrowed */
    size_t argc;
    size_t vmm; /* index of the VMM's own name; > 0: a wrapper stands before it */
    struct qemu_option *options;
    size_t n_options;
};

/* Finds the VMM's name by itself: a wrapper may stand before it. 0 or -ENOMEM; argv must stay until
 * qemu_line_free(). */
int qemu_line_parse(struct qemu_line *out, char *const *argv);

/* The same for a line whose VMM is the word number `vmm`. */
int qemu_line_parse_at(struct qemu_line *out, char *const *argv, size_t vmm);
void qemu_line_free(struct qemu_line *line);

/* True when the option's name is this one. */
bool qemu_option_is(const struct qemu_option *o, const char *name);

/*
 * The inside of a value as an object of JSON, whether it was written as JSON or as "a=b,c=d" (",,"
 * stands for a comma; a word without "=" is the value of `implied` if it comes first, else a switch
 * that is on, "noX" being X=off). Of a repeated key the last counts, as in QEMU. Strings may hold
 * bytes that are no UTF-8. NULL when memory is short. New reference.
 */
json_t *qemu_value_parse(const char *value, const char *implied);

/* The string at "key" or "a.b"; NULL when there is none. */
const char *qemu_value_string(const json_t *object, const char *key);

/* A switch: on, yes, true, y; off, no, false, n; `otherwise` when absent or anything else. */
bool qemu_value_switch(const json_t *object, const char *key, bool otherwise);

#endif
