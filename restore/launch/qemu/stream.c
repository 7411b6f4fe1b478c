/*
 * stream.c - see stream.h. The format is QEMU's migration stream, version 3 (migration/savevm.c and
 * migration/ram.c); all integers are big-endian:
 *
 *     "QEVM" 3                                       the first 8 bytes of the saved state
 *     07 len name                                    configuration: the machine type, which QEMU
 * compares 04 id "ram" instance version ... 7e id         a full section that lists the RAM blocks
 *     (sections of the saved state)                  as xen-save-devices-state wrote them, to the
 * 00 06 len "{}"                                    an empty description, or QEMU warns
 *
 * The "ram" section carries no page. It is there for QEMU's own check: it refuses a block that it
 * does not have, or has in another size.
 */
#include "restore/launch/qemu/stream.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STREAM_MAGIC 0x5145564du /* "QEVM" */
#define STREAM_VERSION 3u
#define STREAM_HEADER_BYTES 8u

#define SECTION_FULL 0x04
#define SECTION_DESCRIPTION 0x06
#define SECTION_CONFIGURATION 0x07
#define SECTION_FOOTER 0x7e

/* Not the number of any section that QEMU writes: those count from 0. */
#define RAM_SECTION_ID 0x766d736eu
#define RAM_VERSION 4u
#define RAM_FLAG_MEM_SIZE 0x04u
#define RAM_FLAG_EOS 0x10u

static void put_be32(FILE *f, uint32_t v)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        fputc((int)(v >> shift & 0xff), f);
}

static void put_be64(FILE *f, uint64_t v)
{
    put_be32(f, (uint32_t)(v >> 32));
    put_be32(f, (uint32_t)v);
}

/* A counted string with a length byte. */
static void put_name(FILE *f, const char *name)
{
    size_t len = strlen(name);
    fputc((int)len, f);
    fwrite(name, 1, len, f);
}

static void put_configuration(FILE *f, const char *machine)
{
    fputc(SECTION_CONFIGURATION, f);
    put_be32(f, (uint32_t)strlen(machine));
    fputs(machine, f);
}

/* Blocks without a name are those that QEMU does not migrate. */
static void put_ram(FILE *f, const struct image_region *regions, uint32_t n)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; i++)
        if (regions[i].name[0])
            total += regions[i].bytes;
    fputc(SECTION_FULL, f);
    put_be32(f, RAM_SECTION_ID);
    put_name(f, "ram");
    put_be32(f, 0); /* instance */
    put_be32(f, RAM_VERSION);
    put_be64(f, total | RAM_FLAG_MEM_SIZE);
    for (uint32_t i = 0; i < n; i++) {
        if (!regions[i].name[0])
            continue;
        put_name(f, regions[i].name);
        put_be64(f, regions[i].bytes);
    }
    put_be64(f, RAM_FLAG_EOS);
    fputc(SECTION_FOOTER, f);
    put_be32(f, RAM_SECTION_ID);
}

static int check_state(const unsigned char *state, uint64_t bytes, struct error *e)
{
    static const unsigned char header[STREAM_HEADER_BYTES] = {'Q', 'E', 'V', 'M', 0, 0, 0, 3};
    if (bytes > STREAM_HEADER_BYTES && memcmp(state, header, sizeof(header)) == 0)
        return 0;
    error_set(e, VMSNAP_EXIT_IMAGE, EBADMSG, "the image holds no device state of QEMU");
    error_hint(e, "a snapshot of memory alone can't be restored as a VM");
    return -EBADMSG;
}

int stream_build(void **out, size_t *len, const void *state, uint64_t state_bytes,
                 const char *machine, const struct image_region *regions, uint32_t n_regions,
                 struct error *e)
{
    int rc = check_state(state, state_bytes, e);
    if (rc)
        return rc;
    char *buf = NULL;
    FILE *f = open_memstream(&buf, len);
    if (!f)
        return error_set(e, VMSNAP_EXIT_FAILED, errno, "no memory for the device state");
    const unsigned char *bytes = state;
    put_be32(f, STREAM_MAGIC);
    put_be32(f, STREAM_VERSION);
    put_configuration(f, machine);
    put_ram(f, regions, n_regions);
    fwrite(bytes + STREAM_HEADER_BYTES, 1, state_bytes - STREAM_HEADER_BYTES, f);
    fputc(SECTION_DESCRIPTION, f);
    put_be32(f, 2);
    fputs("{}", f);
    int err = ferror(f) ? EIO : 0;
    if (fclose(f))
        err = errno;
    if (err) {
        free(buf);
        return error_set(e, VMSNAP_EXIT_FAILED, err, "no memory for the device state");
    }
    *out = buf;
    return 0;
}
