/* A portrait from a recording: what a kiosk does between a visitor's last word and the picture on its screen.

   Everything an embedding program needs stands in main: open once, ask how large a portrait is, draw, encode, close.
   Every call is checked, and whatever fails ends in one place. */
#define _POSIX_C_SOURCE 200809L

#include "support.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_SECONDS 60 /* of raw samples: stdin may be a microphone that nobody ends */

static const char help[] =
    "Usage: kiosk [OPTIONS] IN OUT.png\n"
    "       kiosk [OPTIONS] --raw RATE CHANNELS [--i16 | --f32] - OUT.png\n"
    "\n"
    "Draws a portrait from speech. IN: WAV, FLAC, OGG or MP3; with --raw and -: samples from stdin, interleaved, in the\n"
    "byte order of this machine, of which the first minute is read.\n"
    "\n"
    "  --raw RATE CHANNELS   samples per second and channels on stdin\n"
    "  --i16, --f32          how they are written: 16-bit integers (default) or 32-bit floats\n"
    "  --seed S              same seed, same portrait (default 0)\n"
    "  --steps N             denoising steps, one of the bundle's; default: the bundle's\n"
    "  --window W            which six seconds: start (default), centre, loudest\n"
    "  --bundle DIR          folder of the bundle; default: the shipped demo\n"
    "  --device D            auto (default), cpu, openvino, cuda, tensorrt\n"
    "  --threads N           CPU threads; default: the physical cores usable here\n"
    "  --timeout MS          milliseconds that drawing may take, then error 82; default: no limit\n"
    "  --verbose             what the library logs, on stderr\n"
    "\n"
    "Exit status: 0, or the code of the error shown in brackets; 2 for a command line that cannot be read, 81 when\n"
    "interrupted.\n"
    "\n" RESPECT;

typedef struct settings {
    s2f_options options;
    s2f_request request;
    const char *bundle, *words[2]; /* words: speech, output */
    int64_t raw[2], i16, f32, verbose;
} settings;

/* Told before the first step and after each; non-zero ends the call, which then returns S2F_CANCELLED. */
static int32_t on_progress(int32_t done, int32_t total, void *user)
{
    (void)user;
    fprintf(stderr, "kiosk: step %d of %d\n", (int)done, (int)total);
    return interrupted();
}

static void on_log(int32_t level, const char *message, void *user)
{
    (void)user;
    fprintf(stderr, "kiosk: log %d: %s\n", (int)level, message);
}

/* Returns 0, or USAGE. */
static int read_settings(int argc, char **argv, settings *set)
{
    int64_t seed = 0, steps = 0, threads = 0, timeout = 0;
    const option options[] = {
        {"--raw", set->raw, 2, 1, 384000, NULL},
        {"--i16", &set->i16, 0, 0, 0, NULL},
        {"--f32", &set->f32, 0, 0, 0, NULL},
        {"--seed", &seed, 1, 0, INT64_MAX, NULL},
        {"--steps", &steps, 1, 1, INT32_MAX, NULL},
        {"--window", NULL, 0, 0, 0, &set->request.window},
        {"--bundle", NULL, 0, 0, 0, &set->bundle},
        {"--device", NULL, 0, 0, 0, &set->options.device},
        {"--threads", &threads, 1, 1, INT32_MAX, NULL},
        {"--timeout", &timeout, 1, 1, UINT32_MAX, NULL},
        {"--verbose", &set->verbose, 0, 0, 0, NULL},
        {NULL, NULL, 0, 0, 0, NULL},
    };
    int status = read_options(argc, argv, options, set->words, 2);
    if (status != 0) {
        return status;
    }
    if ((strcmp(set->words[0], "-") == 0) != (set->raw[0] != 0) || (set->i16 && set->f32)) {
        fprintf(stderr, "kiosk: --raw RATE CHANNELS and - go together, with one of --i16 and --f32. Try --help.\n");
        return USAGE;
    }
    set->request.seed = seed;
    set->request.steps = (int32_t)steps;
    set->request.timeout_ms = (uint32_t)timeout;
    set->request.progress = on_progress;
    set->options.threads = (int32_t)threads;
    set->options.log = set->verbose ? on_log : NULL;
    return 0;
}

/* All frames of stdin, to be freed by the caller. Returns an s2f code; an error has been reported. */
static int32_t read_samples(const raw_format *format, void **samples, size_t *frames)
{
    size_t one = frame_bytes(format), most = (size_t)format->rate * MAX_SECONDS, room = (size_t)format->rate * 8;
    size_t got = 0;
    *samples = NULL;
    for (;;) {
        room = room < most ? room : most;
        void *grown = realloc(*samples, room * one);
        if (grown == NULL) {
            return fail(S2F_UNEXPECTED, "out of memory");
        }
        *samples = grown;
        size_t part = read_fully(STDIN_FILENO, (char *)grown + got * one, (room - got) * one);
        if (part == (size_t)-1) {
            return fail(S2F_AUDIO_UNREADABLE, "stdin cannot be read: %s", strerror(errno));
        }
        got += part / one;
        if (got < room || room == most) {
            break;
        }
        room *= 2;
    }
    *frames = got;
    return interrupted() ? fail(S2F_CANCELLED, "interrupted") : S2F_OK;
}

static int32_t draw(s2f_pipeline *pipeline, const settings *set, const raw_format *format, const void *samples,
                    size_t frames, uint8_t *image, s2f_result *result)
{
    const s2f_request *request = &set->request;
    size_t size = result->bytes_needed;
    if (samples == NULL) {
        return s2f_generate_file(pipeline, set->words[0], request, image, size, result);
    }
    if (format->floats) {
        return s2f_generate(pipeline, samples, frames, format->rate, format->channels, request, image, size, result);
    }
    return s2f_generate_i16(pipeline, samples, frames, format->rate, format->channels, request, image, size, result);
}

/* Between open and close. Returns an s2f code; an error has been reported. */
static int32_t portrait(s2f_pipeline *pipeline, const settings *set, const raw_format *format, const void *samples,
                        size_t frames)
{
    s2f_result result;
    s2f_result_init(&result);
    int32_t code = s2f_info(pipeline, &result);
    if (code != S2F_OK) {
        return report(code);
    }
    uint8_t *image = malloc(result.bytes_needed);
    if (image == NULL) {
        return fail(S2F_UNEXPECTED, "out of memory");
    }
    code = draw(pipeline, set, format, samples, frames, image, &result);
    code = code == S2F_OK ? save_portrait(pipeline, image, &result, set->words[1]) : report(code);
    if (code == S2F_OK) {
        printf("%s  seed %" PRId64 ", %d steps, %.1f ms\n", set->words[1], result.seed, (int)result.steps,
               result.total_ms);
    }
    free(image);
    return code;
}

int main(int argc, char **argv)
{
    program = "kiosk";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            return fputs(help, stdout) == EOF;
        }
    }
    settings set;
    memset(&set, 0, sizeof set);
    s2f_options_init(&set.options);
    s2f_request_init(&set.request);
    int status = check_library();
    status = status == 0 ? read_settings(argc, argv, &set) : status;
    if (status != 0) {
        return status;
    }
    catch_signals();

    raw_format format = {(int32_t)set.raw[0], (int32_t)set.raw[1], set.f32 != 0};
    void *samples = NULL;
    size_t frames = 0;
    s2f_pipeline *pipeline = NULL;
    int32_t code = set.raw[0] != 0 ? read_samples(&format, &samples, &frames) : S2F_OK;
    if (code == S2F_OK && (code = s2f_open(set.bundle, &set.options, &pipeline)) != S2F_OK) {
        report(code);
    }
    if (code == S2F_OK) {
        code = portrait(pipeline, &set, &format, samples, frames);
        s2f_close(pipeline);
    }
    free(samples);
    return code;
}
