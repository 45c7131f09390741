#define _POSIX_C_SOURCE 200809L

#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *program = "s2f";

static volatile sig_atomic_t signalled;

static int usage(const char *problem, const char *word)
{
    fprintf(stderr, "%s: %s %s. Try --help.\n", program, problem, word);
    return USAGE;
}

static int read_number(const char *text, const option *asked, int64_t *value)
{
    char *end = NULL;
    errno = 0;
    long long number = text == NULL ? 0 : strtoll(text, &end, 10);
    if (end == NULL || end == text || *end != '\0' || errno != 0 || number < asked->low || number > asked->high) {
        fprintf(stderr, "%s: %s takes whole numbers in %" PRId64 "..%" PRId64 ", not '%s'. Try --help.\n", program,
                asked->name, asked->low, asked->high, text == NULL ? "" : text);
        return USAGE;
    }
    *value = number;
    return 0;
}

/* Returns how many words after the option were used, or -1. argv ends with NULL, so nothing is read behind it. */
static int read_option(char **argv, const option *asked)
{
    if (asked->text != NULL) {
        *asked->text = argv[1];
        return argv[1] == NULL ? (usage("a word must follow", asked->name), -1) : 1;
    }
    if (asked->count == 0) {
        *asked->numbers = 1;
    }
    for (int i = 0; i < asked->count; i++) {
        if (read_number(argv[1 + i], asked, &asked->numbers[i]) != 0) {
            return -1;
        }
    }
    return asked->count;
}

int read_options(int argc, char **argv, const option *options, const char **words, int wanted)
{
    int found = 0;
    for (int i = 1; i < argc; i++) {
        const option *match = options;
        while (match->name != NULL && strcmp(match->name, argv[i]) != 0) {
            match++;
        }
        if (match->name != NULL) {
            int used = read_option(argv + i, match);
            if (used < 0) {
                return USAGE;
            }
            i += used;
        } else if (argv[i][0] == '-' && argv[i][1] != '\0') {
            return usage("there is no option", argv[i]);
        } else if (found == wanted) {
            return usage("one word too many:", argv[i]);
        } else {
            words[found++] = argv[i];
        }
    }
    return found < wanted ? usage("words are missing after", found == 0 ? "the options" : words[found - 1]) : 0;
}

int check_library(void)
{
    if (s2f_abi_version() < S2F_ABI_VERSION) {
        return fail(S2F_UNEXPECTED, "libs2f %s has ABI %u, and this program needs %u", s2f_version(),
                    (unsigned)s2f_abi_version(), (unsigned)S2F_ABI_VERSION);
    }
    return 0;
}

static void on_signal(int number)
{
    (void)number;
    signalled = 1;
}

void catch_signals(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = (int)SA_RESETHAND; /* and no SA_RESTART: a read that waits must come back */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int interrupted(void)
{
    return signalled;
}

size_t frame_bytes(const raw_format *format)
{
    return (size_t)format->channels * (format->floats ? sizeof(float) : sizeof(int16_t));
}

size_t read_fully(int descriptor, void *bytes, size_t count)
{
    size_t done = 0;
    while (done < count && !signalled) {
        ssize_t got = read(descriptor, (char *)bytes + done, count - done);
        if (got == 0) {
            break;
        }
        if (got > 0) {
            done += (size_t)got;
        } else if (errno != EINTR) {
            return (size_t)-1;
        }
    }
    return done;
}

static int write_fully(int descriptor, const uint8_t *bytes, size_t count)
{
    while (count > 0) {
        ssize_t put = write(descriptor, bytes, count);
        if (put > 0) {
            bytes += put;
            count -= (size_t)put;
        } else if (put == 0 || errno != EINTR) {
            return -1;
        }
    }
    return fsync(descriptor);
}

/* The new file's name holds our process id, so what lies there is a leftover of a process that is gone. */
static int create_beside(const char *path, char *temporary, size_t length)
{
    struct stat found;
    if (stat(path, &found) == 0 && !S_ISREG(found.st_mode)) {
        errno = S_ISDIR(found.st_mode) ? EISDIR : EEXIST;
        return -1;
    }
    snprintf(temporary, length, "%s.%ld.tmp", path, (long)getpid());
    unlink(temporary);
    return open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

int write_file(const char *path, const uint8_t *bytes, size_t count)
{
    size_t length = strlen(path) + 32;
    char *temporary = malloc(length);
    if (temporary == NULL) {
        return -1;
    }
    int descriptor = create_beside(path, temporary, length), status = -1;
    if (descriptor >= 0) {
        status = write_fully(descriptor, bytes, count);
        status = close(descriptor) == 0 ? status : -1;
        status = status == 0 ? rename(temporary, path) : status;
        if (status != 0) {
            int reason = errno;
            unlink(temporary);
            errno = reason;
        }
    }
    free(temporary);
    return status;
}

int32_t save_portrait(s2f_pipeline *pipeline, const uint8_t *image, const s2f_result *result, const char *path)
{
    size_t room = result->bytes_needed + 65536, size = 0; /* always enough, see s2f.h */
    uint8_t *png = malloc(room);
    if (png == NULL) {
        return fail(S2F_UNEXPECTED, "out of memory");
    }
    int32_t code = s2f_encode_png(pipeline, image, result, png, room, &size);
    if (code != S2F_OK) {
        report(code);
    } else if (write_file(path, png, size) != 0) {
        code = fail(S2F_OUTPUT_UNWRITABLE, "%s cannot be written: %s", path, strerror(errno));
    }
    free(png);
    return code;
}

int32_t report(int32_t code)
{
    return fail(code, "%s", s2f_last_error());
}

int32_t fail(int32_t code, const char *format, ...)
{
    va_list values;
    fprintf(stderr, "%s: error [%d]: ", program, (int)code);
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    return code;
}
