/* What the two programs share: options, signals, raw samples, portraits as whole files. POSIX. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <s2f.h>

#include <stddef.h>
#include <stdint.h>

#define USAGE 2 /* the exit status of a command line that cannot be read, as that of `s2f` */

#define RESPECT                                                                                         \
    "A voice does not determine a face. The output is a plausible portrait drawn by a model; it shows\n" \
    "no real person and identifies nobody. Not for surveillance, identification or decisions about\n"    \
    "people. The file says that it was generated.\n"

/* An option of the command line: a flag (neither numbers nor text), whole numbers within low..high, or a text. */
typedef struct option {
    const char *name;
    int64_t *numbers; /* a flag sets the first to 1 */
    int count;        /* how many numbers follow the option */
    int64_t low, high;
    const char **text;
} option;

/* How raw samples lie on stdin: rate in Hz, interleaved channels, int16 or float32 in the machine's byte order. */
typedef struct raw_format {
    int32_t rate, channels;
    int floats;
} raw_format;

/* Sets options from argv and moves everything else to `words`, of which there are `wanted`.
   Returns 0, or USAGE with a line on stderr. */
int read_options(int argc, char **argv, const option *options, const char **words, int wanted);

/* Returns 0, or S2F_UNEXPECTED with a line on stderr where the library is older than what this was built for. */
int check_library(void);

/* From now on SIGINT and SIGTERM make `interrupted` true; a second one ends the process as usual. */
void catch_signals(void);
int interrupted(void);

size_t frame_bytes(const raw_format *format);

/* Fills `bytes` from a descriptor. Less than `count` is returned at the end of input and when interrupted,
   (size_t)-1 where reading fails (errno). */
size_t read_fully(int descriptor, void *bytes, size_t count);

/* Encodes a portrait as PNG, with its mark, and writes it to `path` whole or not at all. Returns an s2f code;
   anything but S2F_OK has been reported. */
int32_t save_portrait(s2f_pipeline *pipeline, const uint8_t *image, const s2f_result *result, const char *path);

/* Writes bytes to `path` whole or not at all: a new file beside it, fsync, rename. Returns 0, or -1 (errno). */
int write_file(const char *path, const uint8_t *bytes, size_t count);

/* Who speaks on stderr. Set by main before anything else. */
extern const char *program;

/* A line on stderr for a code that the library returned, with its own words. Returns the code. */
int32_t report(int32_t code);

/* A line on stderr for a failure of the program itself, under the code that fits. Returns the code. */
int32_t fail(int32_t code, const char *format, ...);

#endif
