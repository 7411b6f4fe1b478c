/* restore_text.h - the lines of text of `vmsnap restore`, out of its JSON objects. */
#ifndef VMSNAP_TOOLS_RESTORE_TEXT_H
#define VMSNAP_TOOLS_RESTORE_TEXT_H

#include <jansson.h>
#include <stdbool.h>

void restore_text_clock(const json_t *o);
void restore_text_running(const json_t *o);
void restore_text_listening(const json_t *o);

/* `of_many`: of --listen, so that the line says whose it is. */
void restore_text_summary(const json_t *o, bool of_many);
void restore_text_exit(const json_t *o);

#endif
