/*
 * report_file.h - --report: the file of a detached server's lines.
 *
 * It is opened before anything is started, so that what stands against it is said in time, and
 * begun (emptied) only with the first line: a restore that is refused leaves the last one's report
 * as it is. All processes of a restore share the descriptor, and with it the place in the file, by
 * which they know whether it is begun. It stays locked until the last of them has ended, but
 * for those of --listen that belong to one VM.
 */
#ifndef VMSNAP_TOOLS_REPORT_FILE_H
#define VMSNAP_TOOLS_REPORT_FILE_H

#include <stdio.h>

#include "common/error.h"

/* Exit code 11: another vmsnap writes to it; 18: the disk is full. */
int report_file_open(const char *path, struct error *e);

/* NULL: none was opened. */
FILE *report_file(void);

/* This process goes on writing, at the end, without being one of those that keep
 * the file locked. */
void report_file_unlock_here(void);

/* Before each line. */
void report_file_begin(void);

/* After each line. Sets room aside for the next ones; where the disk is full, what was set aside
 * before is enough for a line that says so, once. */
void report_file_look_ahead(void);

/* Nothing runs: a file that was not there before goes. */
void report_file_abandon(void);

#endif
