/*
 * codec.h - one cluster in, one zstd frame out, and back; checksums. Paired: encode / decode.
 * Nothing here allocates after codec_new(): fit for threads whose memory is locked.
 */
#ifndef VMSNAP_COMMON_CODEC_H
#define VMSNAP_COMMON_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct codec; /* a thread's own compression and decompression state; not shared */

/* The largest zstd frame that codec_encode() makes of one cluster: IMAGE_FRAME_MAX. */
size_t codec_frame_max(void);

/* level: zstd's. NULL when memory is short. */
struct codec *codec_new(int level);
void codec_free(struct codec *c);

/* Compresses `len` bytes (at most a cluster) into `out` (codec_frame_max() bytes). Returns the
 * frame's length or -errno. */
int codec_encode(struct codec *c, const void *in, size_t len, void *out);

/* Decodes one frame that must be exactly frame_bytes long and yield exactly `len` bytes. -EBADMSG
 * for anything else. Never writes past out + len, whatever the frame says. */
int codec_decode(struct codec *c, const void *frame, size_t frame_bytes, void *out, size_t len);

/* The length of the zstd data frame that starts at `buf` (of which `len` bytes are there), found
 * from its block headers. -EBADMSG: no whole frame of at most codec_frame_max() bytes. */
int codec_frame_bytes(const void *buf, size_t len);

/* True when all `len` bytes are zero, at memory speed. */
bool codec_is_zero(const void *buf, size_t len);

uint64_t codec_checksum(const void *buf, size_t len, uint64_t seed); /* XXH3-64 */

/* XXH3-64 (seed 0) of two pieces as if they lay one behind the other. */
uint64_t codec_checksum2(const void *a, size_t a_len, const void *b, size_t b_len);

#endif
