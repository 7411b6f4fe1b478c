/* sample.c - `image_sample FILE`: writes the sample image of tests/unit/image_sample.h. */
#include <stdio.h>

#include "tests/unit/image_sample.h"

int main(int argc, char **argv)
{
    struct error e = {0};
    if (argc != 2 || sample_write_file(argv[1], &e) < 0) {
        fprintf(stderr, "image_sample FILE: %s\n", e.message);
        return 1;
    }
    return 0;
}
