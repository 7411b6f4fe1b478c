#include "tools/vmsnap/terminal.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Decodes the UTF-8 character at `s` (RFC 3629): its length, or 0 if there is none. Stops at the
 * terminating zero by itself: it is no continuation byte. */
static unsigned decode(const unsigned char *s, uint32_t *c)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned len = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (len == 0 || s[0] > 0xf4)
        return 0;
    *c = len == 1 ? s[0] : s[0] & (0xffu >> (len + 1));
    for (unsigned i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        *c = *c << 6 | (s[i] & 0x3fu);
    }
    if (*c < least[len] || *c > 0x10ffff || (*c >= 0xd800 && *c <= 0xdfff))
        return 0;
    return len;
}

/* Controls (C0, DEL, C1), and what changes how other text is shown: zero-width, line separators,
 * bidirectional overrides and isolates, the byte order mark, tags. */
static bool is_plain(uint32_t c)
{
    return !(c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0xad || c == 0x61c ||
             (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
             (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) ||
             (c >= 0xe0000 && c <= 0xe0fff));
}

/* Copies with escapes. `quote`: characters that get a backslash in front. *escaped: whether any
 * \xHH was needed. */
static char *escape(const char *text, const char *quote, bool *escaped)
{
    const unsigned char *s = (const unsigned char *)text;
    char *out = malloc(4 * strlen(text) + 1), *to = out;
    *escaped = false;
    while (out && *s) {
        uint32_t c = 0;
        unsigned len = decode(s, &c);
        if (len == 0 || !is_plain(c)) {
            for (unsigned i = 0; i < (len ? len : 1); i++)
                to += sprintf(to, "\\x%02x", s[i]);
            *escaped = true;
        } else {
            if (len == 1 && strchr(quote, (int)c))
                *to++ = '\\';
            memcpy(to, s, len);
            to += len;
        }
        s += len ? len : 1;
    }
    if (out)
        *to = '\0';
    return out;
}

char *terminal_text(const char *text)
{
    bool escaped;
    return escape(text, "\\", &escaped);
}

static bool needs_no_quotes(const char *word)
{
    for (const char *s = word; *s; s++)
        if (!isalnum((unsigned char)*s) && !strchr("%+,-./:=@_", *s))
            return false;
    return *word != '\0';
}

char *terminal_word(const char *word)
{
    bool escaped;
    char *out = NULL;
    if (needs_no_quotes(word))
        return strdup(word);
    char *inner = escape(word, "\\'", &escaped);
    if (!inner)
        return NULL;
    /* Between plain quotes nothing is special; $'...' understands \xHH, \\ and \'. */
    bool simple = !escaped && !strchr(word, '\'');
    if (asprintf(&out, simple ? "'%s'" : "$'%s'", simple ? word : inner) < 0)
        out = NULL;
    free(inner);
    return out;
}
