/* replay.c - `unit_fuzz_NAME DIRECTORY...`: every file of the corpus through the fuzz target, and
 * each of its prefixes and single damaged bytes at regular steps. No fuzzer is needed. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

#define FILE_MAX (1u << 20)
#define STEPS 60u

static void replay_variants(uint8_t *data, size_t size)
{
    LLVMFuzzerTestOneInput(data, size);
    for (size_t i = 1; i < STEPS; i++) {
        size_t at = size * i / STEPS;
        LLVMFuzzerTestOneInput(data, at);
        data[at] ^= (uint8_t)(1u << i % 8);
        LLVMFuzzerTestOneInput(data, size);
        data[at] ^= (uint8_t)(1u << i % 8);
    }
}

static int replay_file(const char *directory, const char *name)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(FILE_MAX);
    size_t size = f && data ? fread(data, 1, FILE_MAX, f) : 0;
    if (f)
        fclose(f);
    if (size > 0)
        replay_variants(data, size);
    free(data);
    return size > 0;
}

static unsigned replay_directory(const char *directory)
{
    unsigned n = 0;
    DIR *d = opendir(directory);
    const struct dirent *entry;
    while (d && (entry = readdir(d)) != NULL)
        if (entry->d_name[0] != '.' && entry->d_type == DT_REG)
            n += (unsigned)replay_file(directory, entry->d_name);
    if (d)
        closedir(d);
    return n;
}

int main(int argc, char **argv)
{
    unsigned n = 0;
    for (int i = 1; i < argc; i++)
        n += replay_directory(argv[i]);
    printf("%u files, %llu inputs accepted\n", n, (unsigned long long)fuzz_accepted());
    /* A corpus that is not found, or of which nothing is good, tests nothing. */
    return n < 10 || fuzz_accepted() < 10;
}
