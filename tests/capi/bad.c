/* bad BUNDLE TAMPERED FOLDER: everything a caller can do wrong; each gives its code and a text. */
#include "host.h"

#include <math.h>

static s2f_pipeline *pipeline;
static uint8_t image[32 * 32 * 3];
static s2f_result result;
static voice speech;

static int32_t with(const s2f_request *request)
{
    return s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, request, image, sizeof(image), &result);
}

static int32_t of(const float *pcm, size_t frames, int32_t rate, int32_t channels)
{
    return s2f_generate(pipeline, pcm, frames, rate, channels, NULL, image, sizeof(image), &result);
}

static void before_anything_is_open(void)
{
    int here = 0;
    CHECK(s2f_abi_version() == S2F_ABI_VERSION && s2f_version()[0] != '\0' && s2f_last_error()[0] == '\0');
    CHECK(s2f_strerror(0)[0] != '\0' && s2f_strerror(S2F_TIMED_OUT)[0] != '\0' && s2f_strerror(-5)[0] != '\0');
    s2f_options_init(NULL);
    s2f_request_init(NULL);
    s2f_result_init(NULL);
    s2f_stream_options_init(NULL);
    s2f_stream_state_init(NULL);
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info((s2f_pipeline *)(void *)&here, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_close((s2f_pipeline *)(uintptr_t)0x52F1000000000001));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(NULL, NULL, NULL));
}

static void bundles(const char *bundle, const char *tampered)
{
    s2f_pipeline *made = (s2f_pipeline *)(void *)&result;
    s2f_options options;
    EXPECT(S2F_BUNDLE_NOT_FOUND, s2f_open("/nowhere/at/all", NULL, &made));
    CHECK(made == NULL && strstr(s2f_last_error(), "/nowhere/at/all") != NULL);
    EXPECT(S2F_BUNDLE_NOT_FOUND, s2f_open("", NULL, &made));
    EXPECT(S2F_BUNDLE_NOT_FOUND, s2f_open("\xff\xfe-no-utf-8", NULL, &made));
    EXPECT(S2F_BUNDLE_TAMPERED, s2f_open(tampered, NULL, &made));
    s2f_options_init(&options);
    options.device = "abacus";
    EXPECT(S2F_DEVICE_UNAVAILABLE, s2f_open(bundle, &options, &made));
    options.device = "\xff\xff";
    EXPECT(S2F_DEVICE_UNAVAILABLE, s2f_open(bundle, &options, &made));
    options.device = "cpu";
    options.threads = -1;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(bundle, &options, &made));
    options.threads = 1;
    options.precision = "fp8";
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(bundle, &options, &made));
    options.precision = "fp16"; /* not on a CPU */
    EXPECT(S2F_DEVICE_UNAVAILABLE, s2f_open(bundle, &options, &made));
    options.precision = "int8"; /* not in this bundle */
    EXPECT(S2F_BUNDLE_INVALID, s2f_open(bundle, &options, &made));
    options.precision = NULL;
    options.struct_size = 0;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(bundle, &options, &made));
    options.struct_size = SIZE_MAX;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(bundle, &options, &made));
    options.struct_size = sizeof(options) - 3; /* within a field */
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(bundle, &options, &made));
    options.struct_size = sizeof(size_t) - 1;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(bundle, &options, &made));
    CHECK(made == NULL);
}

static void pointers(void)
{
    size_t needed;
    const float *one[1] = {NULL};
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info(NULL, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info(pipeline, NULL));
    EXPECT(S2F_INVALID_ARGUMENT, of(NULL, 16000, RATE, 1));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_generate(NULL, speech.pcm, 1, RATE, 1, NULL, image, sizeof(image), &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_generate(pipeline, speech.pcm, 1, RATE, 1, NULL, NULL, 99, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_generate(pipeline, speech.pcm, 1, RATE, 1, NULL, NULL, 0, NULL));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_generate_i16(pipeline, NULL, 9, RATE, 1, NULL, image, sizeof(image), &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_generate_file(pipeline, NULL, NULL, image, sizeof(image), &result));
    EXPECT(S2F_INVALID_ARGUMENT,
           s2f_generate_batch(pipeline, NULL, &speech.frames, 1, RATE, 1, NULL, image, sizeof(image), &result));
    EXPECT(S2F_INVALID_ARGUMENT,
           s2f_generate_batch(pipeline, one, &speech.frames, 1, RATE, 1, NULL, image, sizeof(image), &result));
    one[0] = speech.pcm;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_generate_batch(pipeline, one, NULL, 1, RATE, 1, NULL, image, sizeof(image), NULL));
    EXPECT(S2F_INVALID_ARGUMENT,
           s2f_generate_batch(pipeline, one, &speech.frames, 0, RATE, 1, NULL, image, sizeof(image), &result));
    EXPECT(S2F_INVALID_ARGUMENT,
           s2f_generate_batch(pipeline, one, &speech.frames, SIZE_MAX, RATE, 1, NULL, NULL, 0, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_encode_png(NULL, image, &result, NULL, 0, &needed));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_encode_png(pipeline, NULL, &result, NULL, 0, &needed));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_encode_png(pipeline, image, NULL, NULL, 0, &needed));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_encode_png(pipeline, image, &result, NULL, 0, NULL));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_encode_png(pipeline, image, &result, NULL, 5, &needed));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_close(NULL));
}

static void sizes(void)
{
    s2f_result small;
    size_t needed;
    s2f_result_init(&small);
    EXPECT(S2F_BUFFER_TOO_SMALL, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, image,
                                              sizeof(image) - 1, &small));
    CHECK(small.bytes_needed == sizeof(image) && small.width == 32 && small.height == 32);
    EXPECT(S2F_BUFFER_TOO_SMALL, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, image, 0, NULL));
    CHECK(strstr(s2f_last_error(), "3072") != NULL);
    small.struct_size = 3;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info(pipeline, &small));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, NULL, 0, &small));
    s2f_result_init(&small);
    small.width = 31;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_encode_png(pipeline, image, &small, NULL, 0, &needed));
}

static void audio(const char *folder)
{
    char path[4096];
    float *samples = calloc(2 * RATE, sizeof(float));
    EXPECT(S2F_AUDIO_SILENT, of(samples, 2 * RATE, RATE, 1));
    EXPECT(S2F_AUDIO_TOO_SHORT, of(speech.pcm, 0, RATE, 1));
    EXPECT(S2F_AUDIO_TOO_SHORT, of(speech.pcm, RATE / 4, RATE, 1));
    EXPECT(S2F_AUDIO_TOO_SHORT, of(speech.pcm, 3, RATE, 256));
    memcpy(samples, speech.pcm, RATE * sizeof(float));
    samples[77] = NAN;
    EXPECT(S2F_AUDIO_NON_FINITE, of(samples, RATE, RATE, 1));
    samples[77] = INFINITY;
    EXPECT(S2F_AUDIO_NON_FINITE, of(samples, RATE, RATE, 1));
    free(samples);
    EXPECT(S2F_AUDIO_UNREADABLE, of(speech.pcm, RATE, 0, 1));
    EXPECT(S2F_AUDIO_UNREADABLE, of(speech.pcm, RATE, -16000, 1));
    EXPECT(S2F_AUDIO_UNREADABLE, of(speech.pcm, RATE, 2000000000, 1));
    EXPECT(S2F_INVALID_ARGUMENT, of(speech.pcm, RATE, RATE, 0));
    EXPECT(S2F_INVALID_ARGUMENT, of(speech.pcm, RATE, RATE, -1));
    EXPECT(S2F_INVALID_ARGUMENT, of(speech.pcm, RATE, RATE, 257));
    EXPECT(S2F_INVALID_ARGUMENT, of(speech.pcm, SIZE_MAX, RATE, 1));
    EXPECT(S2F_INVALID_ARGUMENT, of(speech.pcm, SIZE_MAX / 4, RATE, 2));
    EXPECT(S2F_AUDIO_NOT_FOUND, s2f_generate_file(pipeline, "/no/such.wav", NULL, image, sizeof(image), NULL));
    EXPECT(S2F_AUDIO_NOT_FOUND, s2f_generate_file(pipeline, "", NULL, image, sizeof(image), NULL));
    EXPECT(S2F_AUDIO_UNREADABLE, s2f_generate_file(pipeline, folder, NULL, image, sizeof(image), NULL));
    snprintf(path, sizeof(path), "%s/voice.f32", folder);
    EXPECT(S2F_AUDIO_UNREADABLE, s2f_generate_file(pipeline, path, NULL, image, sizeof(image), NULL));
}

static void requests(void)
{
    s2f_request request;
    s2f_request_init(&request);
    request.seed = -1;
    EXPECT(S2F_INVALID_ARGUMENT, with(&request));
    request.seed = INT64_MAX;
    EXPECT(S2F_OK, with(&request));
    CHECK(result.seed == INT64_MAX);
    request.seed = 0;
    request.steps = 3;
    EXPECT(S2F_STEPS_UNAVAILABLE, with(&request));
    request.steps = -1;
    EXPECT(S2F_INVALID_ARGUMENT, with(&request));
    request.steps = 0;
    request.guidance = 4.001F;
    EXPECT(S2F_INVALID_ARGUMENT, with(&request));
    request.guidance = INFINITY;
    EXPECT(S2F_INVALID_ARGUMENT, with(&request));
    request.guidance = NAN;
    request.prior_weight = 0.5F;
    EXPECT(S2F_INVALID_ARGUMENT, with(&request));
    request.prior_weight = 0;
    request.window = "sideways";
    EXPECT(S2F_INVALID_ARGUMENT, with(&request));
    request.window = NULL;
    request.struct_size = 0;
    EXPECT(S2F_INVALID_ARGUMENT, with(&request));
    request.struct_size = sizeof(request);
    EXPECT(S2F_OK, with(&request));
}

static void handles(void)
{
    s2f_pipeline *closed = pipeline;
    s2f_stream *stream = (s2f_stream *)(void *)&result;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info((s2f_pipeline *)(void *)&result, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info((s2f_pipeline *)(uintptr_t)1, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info((s2f_pipeline *)((uintptr_t)pipeline + 1000), &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info((s2f_pipeline *)(uintptr_t)0x52F1FFFFFFFFFFFF, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_push((s2f_stream *)(void *)pipeline, speech.pcm, 1));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_close(stream));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_open(pipeline, NULL, NULL));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_open(NULL, NULL, &stream));
    CHECK(stream == NULL);
    EXPECT(S2F_OK, s2f_close(pipeline));
    EXPECT(S2F_CLOSED, s2f_close(closed));
    EXPECT(S2F_CLOSED, s2f_info(closed, &result));
    EXPECT(S2F_CLOSED, of(speech.pcm, speech.frames, RATE, 1));
    EXPECT(S2F_CLOSED, s2f_stream_open(closed, NULL, &stream));
    CHECK(stream == NULL);
}

int main(int count, char **arguments)
{
    char path[4096];
    if (count != 4)
        return 2;
    snprintf(path, sizeof(path), "%s/voice.f32", arguments[3]);
    speech = read_voice(path);
    s2f_result_init(&result);
    before_anything_is_open();
    bundles(arguments[1], arguments[2]);
    pipeline = open_cpu(arguments[1]);
    EXPECT(S2F_OK, s2f_info(pipeline, &result));
    pointers();
    sizes();
    audio(arguments[3]);
    requests();
    handles();
    EXPECT(S2F_INVALID_ARGUMENT, s2f_open(NULL, NULL, NULL));
    return failures != 0;
}
