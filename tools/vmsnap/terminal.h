/* terminal.h - text that somebody else chose (an image's VM name, command line), for a terminal. */
#ifndef VMSNAP_TOOLS_TERMINAL_H
#define VMSNAP_TOOLS_TERMINAL_H

/*
 * A copy in which nothing can move the cursor, change colours or the order of writing: control
 * characters, bytes that are not UTF-8, and Unicode's formatting characters stand as \xHH, and a
 * backslash as two. The caller frees it. NULL when memory is short.
 */
char *terminal_text(const char *text);

/* The same for a word of a command line, quoted so that bash reads the very same word back. */
char *terminal_word(const char *word);

#endif
