/* faults BUNDLE VOICE WAV MODULES NAME...: each named point of faults.py in turn, under every call. Prints one line per
 * call, "name<tab>call<tab>code<tab>text"; after each point the library must draw as before. */
#include "inner.h"

#include <errno.h>
#include <time.h>

static const char *bundle, *name, *path;
static voice speech;
static int failing_calloc;

void *__libc_calloc(size_t count, size_t size);

/* The library's own allocation, found by its size, can be made to fail. */
void *calloc(size_t count, size_t size)
{
    if (failing_calloc && size == sizeof(s2f_result)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_calloc(count, size);
}

static int32_t tell(const char *call, int32_t code)
{
    printf("%s\t%s\t%d\t%s\n", name, call, (int)code, s2f_last_error());
    CHECK((code == S2F_OK) == (s2f_last_error()[0] == '\0'));
    return code;
}

static int32_t watch(int32_t done, int32_t total, void *user)
{
    (void)done;
    (void)total;
    (void)user;
    return 0;
}

static void listen(int32_t level, const char *message, void *user)
{
    (void)user;
    CHECK(level > 0 && message != NULL);
}

static void stream_calls(s2f_pipeline *pipeline, uint8_t *image)
{
    const struct timespec moment = {0, 5000000};
    s2f_stream *stream;
    int32_t fresh = 0, code = S2F_OK;
    if (tell("stream open", s2f_stream_open(pipeline, NULL, &stream)) != S2F_OK)
        return;
    code = tell("push", s2f_stream_push(stream, speech.pcm, speech.frames));
    for (int i = 0; i < 1000 && code == S2F_OK && !fresh; i++) {
        code = s2f_stream_poll(stream, image, 3072, NULL, &fresh);
        nanosleep(&moment, NULL);
    }
    tell("poll", code);
    tell("stream close", s2f_stream_close(stream));
}

/* `first`: a pipeline to work with; NULL: open one. */
static void calls(s2f_pipeline *first)
{
    static uint8_t image[3072], png[1 << 17];
    s2f_options options;
    s2f_request request;
    s2f_result result;
    s2f_pipeline *pipeline;
    size_t needed;
    s2f_options_init(&options);
    s2f_request_init(&request);
    s2f_result_init(&result);
    options.device = "cpu";
    options.threads = 1;
    options.log = listen;
    request.progress = watch;
    pipeline = first;
    if (pipeline == NULL && tell("open", s2f_open(bundle, &options, &pipeline)) != S2F_OK) {
        CHECK(pipeline == NULL);
        return;
    }
    tell("info", s2f_info(pipeline, &result));
    tell("generate", s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, 3072, &result));
    tell("file", s2f_generate_file(pipeline, path, &request, image, 3072, &result));
    result.width = result.height = 32;
    tell("png", s2f_encode_png(pipeline, image, &result, png, sizeof(png), &needed));
    stream_calls(pipeline, image);
    tell("close", s2f_close(pipeline));
}

int main(int count, char **arguments)
{
    s2f_pipeline *pipeline;
    uint8_t *expected, *image;
    size_t size;
    if (count < 6)
        return 2;
    bundle = arguments[1];
    speech = read_voice(arguments[2]);
    path = arguments[3];
    pipeline = open_with_python(bundle, arguments[4]);
    python("import faults");
    expected = draw(pipeline, speech, 7, &size);
    name = "nothing";
    calls(NULL);
    for (int i = 5; i < count; i++) {
        static char code[4096];
        s2f_pipeline *opened = NULL;
        name = arguments[i];
        if (strncmp(name, "open", 4) != 0)
            opened = open_cpu(bundle);
        snprintf(code, sizeof(code), "faults.install('%s')", name);
        python(code);
        calls(opened);
        python("faults.remove()");
        image = draw(pipeline, speech, 7, &size);
        CHECK(memcmp(expected, image, size) == 0);
        free(image);
    }
    failing_calloc = 1;
    name = "generate: no memory in C";
    calls(NULL);
    failing_calloc = 0;
    EXPECT(S2F_OK, s2f_close(pipeline));
    return failures != 0;
}
