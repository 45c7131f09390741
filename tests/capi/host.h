/* What the test programs share. A failed check is told on stdout and makes the exit status 1. */
#ifndef HOST_H
#define HOST_H

#define _GNU_SOURCE
#include <s2f.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RATE 16000

static int failures;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            printf("%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #condition, s2f_last_error());        \
            failures++;                                                                                                \
        }                                                                                                              \
    } while (0)

/* A call must return `expected`, with a text if that is a failure and none if it is not. */
#define EXPECT(expected, call)                                                                                         \
    do {                                                                                                               \
        const int32_t code_ = (call);                                                                                  \
        if (code_ != (expected) || (code_ == S2F_OK) != (s2f_last_error()[0] == '\0')) {                               \
            printf("%s:%d: %s gave %d, not %d: %s\n", __FILE__, __LINE__, #call, (int)code_, (int)(expected),          \
                   s2f_last_error());                                                                                  \
            failures++;                                                                                                \
        }                                                                                                              \
    } while (0)

typedef struct voice {
    float *pcm;
    size_t frames;
} voice;

static inline voice read_voice(const char *path)
{
    voice read = {NULL, 0};
    FILE *file = fopen(path, "rb");
    long size;
    if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0)
        exit(2);
    read.pcm = malloc((size_t)size);
    read.frames = (size_t)size / sizeof(float);
    if (read.pcm == NULL || fread(read.pcm, sizeof(float), read.frames, file) != read.frames)
        exit(2);
    fclose(file);
    return read;
}

static inline void write_file(const char *folder, const char *name, const void *data, size_t size)
{
    char path[4096];
    FILE *file;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        exit(2);
}

static inline s2f_pipeline *open_cpu(const char *bundle)
{
    s2f_pipeline *pipeline;
    s2f_options options;
    s2f_options_init(&options);
    options.device = "cpu";
    options.threads = 1;
    EXPECT(S2F_OK, s2f_open(bundle, &options, &pipeline));
    return pipeline;
}

/* One portrait with defaults but for the seed, in memory the caller frees. */
static inline uint8_t *draw(s2f_pipeline *pipeline, voice speech, int64_t seed, size_t *size)
{
    s2f_request request;
    s2f_result result;
    uint8_t *image;
    s2f_request_init(&request);
    s2f_result_init(&result);
    request.seed = seed;
    EXPECT(S2F_OK, s2f_info(pipeline, &result));
    image = malloc(result.bytes_needed);
    EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, result.bytes_needed,
                                &result));
    CHECK(result.seed == seed);
    *size = result.bytes_needed;
    return image;
}

#endif
