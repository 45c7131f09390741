/* streams BUNDLE VOICE FOLDER: speech in pieces; the last portrait goes to FOLDER/settled.rgb. */
#include "host.h"

#include <math.h>
#include <pthread.h>
#include <time.h>

static s2f_pipeline *pipeline;
static voice speech;
static uint8_t image[3072], before[3072];

static void pause_briefly(void)
{
    const struct timespec moment = {0, 2000000};
    nanosleep(&moment, NULL);
}

static s2f_stream_state state_of(s2f_stream *stream)
{
    s2f_stream_state state;
    s2f_stream_state_init(&state);
    EXPECT(S2F_OK, s2f_stream_info(stream, &state));
    return state;
}

/* Wait for a portrait, up to so many milliseconds; 1 if one came. */
static int wait_for(s2f_stream *stream, s2f_result *result, int milliseconds)
{
    int32_t fresh = 0;
    for (int i = 0; i < milliseconds / 2 && !fresh; i++) {
        EXPECT(S2F_OK, s2f_stream_poll(stream, image, sizeof(image), result, &fresh));
        pause_briefly();
    }
    return fresh;
}

static void settle(const char *folder)
{
    s2f_stream_options options;
    s2f_stream *stream;
    s2f_result result, small;
    int32_t fresh = -1;
    s2f_stream_state state;
    s2f_stream_options_init(&options);
    s2f_result_init(&result);
    s2f_result_init(&small);
    options.seed = 5;
    options.steps = 2;
    EXPECT(S2F_OK, s2f_stream_open(pipeline, &options, &stream));
    memset(image, 0x5A, sizeof(image));
    memcpy(before, image, sizeof(image));
    result.width = -7;
    EXPECT(S2F_OK, s2f_stream_push(stream, NULL, 0));
    EXPECT(S2F_OK, s2f_stream_poll(stream, image, sizeof(image), &result, &fresh));
    state = state_of(stream);
    CHECK(state.heard_s == 0 && state.speech_s == 0 && state.portrait_s == 0 && isnan(state.first_portrait_s));
    CHECK(fresh == 0 && memcmp(image, before, sizeof(image)) == 0 && result.width == -7);
    for (size_t i = 0; i + 320 <= 3 * RATE; i += 320)
        EXPECT(S2F_OK, s2f_stream_push(stream, speech.pcm + i, 320));
    EXPECT(S2F_OK, s2f_stream_poll(stream, NULL, 0, &small, &fresh)); /* the size, which takes nothing */
    CHECK(fresh == 0 && small.bytes_needed == sizeof(image));
    EXPECT(S2F_BUFFER_TOO_SMALL, s2f_stream_poll(stream, image, 100, &small, &fresh));
    CHECK(small.bytes_needed == sizeof(image));
    CHECK(wait_for(stream, &result, 20000));
    state = state_of(stream);
    CHECK(state.heard_s == 3 && state.speech_s > 1 && state.speech_s <= 3 && state.dropped_s == 0);
    CHECK(state.portrait_s >= 1 && state.first_portrait_s >= 1 && state.first_portrait_ms > 0);
    CHECK(result.width == 32 && result.seed == 5 && result.steps == 2);
    for (size_t i = 3 * RATE; i + 320 <= 7 * RATE; i += 320)
        EXPECT(S2F_OK, s2f_stream_push(stream, speech.pcm + i, 320));
    while (wait_for(stream, &result, 500)) /* the last one is of the first four seconds */
        continue;
    state = state_of(stream);
    CHECK(state.portrait_s == 4 && state.speech_s > 4 && state.speech_s < 8);
    write_file(folder, "settled.rgb", image, sizeof(image));
    EXPECT(S2F_BUFFER_TOO_SMALL, s2f_stream_finish(stream, 0, image, 100, &small));
    EXPECT(S2F_OK, s2f_stream_push(stream, speech.pcm + 7 * RATE, RATE / 2));
    for (int i = 0; i < 2; i++) { /* all the speech there was; may be asked for again */
        EXPECT(S2F_OK, s2f_stream_finish(stream, 20000, image, sizeof(image), &result));
        CHECK(result.seed == 5 && result.steps == 2 && result.total_ms > 0);
    }
    write_file(folder, "finished.rgb", image, sizeof(image));
    EXPECT(S2F_CLOSED, s2f_stream_push(stream, speech.pcm, 100));
    EXPECT(S2F_OK, s2f_stream_close(stream));
    EXPECT(S2F_CLOSED, s2f_stream_close(stream));
    EXPECT(S2F_CLOSED, s2f_stream_push(stream, speech.pcm, 100));
    EXPECT(S2F_CLOSED, s2f_stream_poll(stream, image, sizeof(image), NULL, &fresh));
    EXPECT(S2F_CLOSED, s2f_stream_finish(stream, 0, image, sizeof(image), NULL));
}

/* Draw with the pipeline until nothing is `busy` any more. */

static int busy;

static int32_t stay_busy(int32_t done, int32_t total, void *user)
{
    (void)total;
    (void)user;
    if (done == 0)
        __atomic_store_n(&busy, 1, __ATOMIC_RELEASE);
    while (__atomic_load_n(&busy, __ATOMIC_ACQUIRE))
        pause_briefly();
    return 0;
}

static void *keep_busy(void *nothing)
{
    static uint8_t other[3072];
    s2f_request request;
    s2f_request_init(&request);
    request.progress = stay_busy;
    EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, other, sizeof(other), NULL));
    return nothing;
}

static void *finish_elsewhere(void *stream)
{
    static uint8_t other[3072];
    EXPECT(S2F_CLOSED, s2f_stream_finish(stream, 0, other, sizeof(other), NULL));
    return NULL;
}

/* Closing a stream does not wait for a portrait that another thread waits for. */
static void close_under_a_finish(void)
{
    pthread_t drawing, finishing;
    s2f_stream *stream;
    EXPECT(S2F_OK, s2f_stream_open(pipeline, NULL, &stream));
    pthread_create(&drawing, NULL, keep_busy, NULL);
    while (!__atomic_load_n(&busy, __ATOMIC_ACQUIRE))
        pause_briefly();
    EXPECT(S2F_OK, s2f_stream_push(stream, speech.pcm, speech.frames));
    pthread_create(&finishing, NULL, finish_elsewhere, stream);
    for (int i = 0; i < 25; i++)
        pause_briefly();
    EXPECT(S2F_OK, s2f_stream_close(stream)); /* while nothing can be drawn */
    pthread_join(finishing, NULL);
    __atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
    pthread_join(drawing, NULL);
}

static void formats(void)
{
    pthread_t thread;
    s2f_stream_options options;
    s2f_stream *stream;
    s2f_result result;
    int16_t *words = malloc(speech.frames * 2 * sizeof(int16_t));
    s2f_stream_options_init(&options);
    s2f_result_init(&result);
    options.sample_rate = 32000;
    options.channels = 2;
    options.max_backlog_s = 10;
    for (size_t i = 0; i < speech.frames; i++)
        words[2 * i] = words[2 * i + 1] = (int16_t)(speech.pcm[i] * 32767);
    EXPECT(S2F_OK, s2f_stream_open(pipeline, &options, &stream));
    EXPECT(S2F_OK, s2f_stream_push_i16(stream, words, speech.frames));
    CHECK(wait_for(stream, &result, 20000));
    pthread_create(&thread, NULL, keep_busy, NULL);
    while (!__atomic_load_n(&busy, __ATOMIC_ACQUIRE))
        pause_briefly();
    for (int i = 0; i < 8; i++) /* more than may wait */
        EXPECT(S2F_OK, s2f_stream_push_i16(stream, words, speech.frames));
    CHECK(state_of(stream).dropped_s > 1);
    __atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    free(words);
    EXPECT(S2F_OK, s2f_close(pipeline)); /* closes the stream as well */
    EXPECT(S2F_CLOSED, s2f_stream_close(stream));
}

static void mistakes(void)
{
    s2f_stream_options options;
    s2f_stream *stream = (s2f_stream *)(void *)&options;
    s2f_result result;
    float samples[4] = {0, NAN, 0, 0};
    int32_t fresh;
    s2f_stream_options_init(&options);
    s2f_result_init(&result);
    options.sample_rate = -5;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_open(pipeline, &options, &stream));
    options.sample_rate = 0;
    options.channels = -1;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_open(pipeline, &options, &stream));
    options.channels = 0;
    options.steps = 3;
    EXPECT(S2F_STEPS_UNAVAILABLE, s2f_stream_open(pipeline, &options, &stream));
    options.steps = 0;
    options.struct_size = 1;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_open(pipeline, &options, &stream));
    CHECK(stream == NULL);
    options.struct_size = sizeof(options);
    options.vad = "/no/such/model.onnx";
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_open(pipeline, &options, &stream));
    CHECK(stream == NULL && strstr(s2f_last_error(), options.vad) != NULL);
    options.vad = "energy";
    EXPECT(S2F_OK, s2f_stream_open(pipeline, &options, &stream));
    EXPECT(S2F_AUDIO_SILENT, s2f_stream_finish(stream, 0, image, sizeof(image), &result));
    EXPECT(S2F_OK, s2f_stream_close(stream));
    options.struct_size = sizeof(size_t);
    EXPECT(S2F_OK, s2f_stream_open(pipeline, &options, &stream));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_finish(stream, 0, NULL, 0, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_finish(NULL, 0, image, sizeof(image), &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_push(stream, NULL, 1));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_push(NULL, samples, 1));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_push(stream, samples, SIZE_MAX));
    EXPECT(S2F_AUDIO_NON_FINITE, s2f_stream_push(stream, samples, 4));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_poll(stream, image, sizeof(image), &result, NULL));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_poll(stream, NULL, 5, &result, &fresh));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_poll(stream, NULL, 0, NULL, &fresh));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info((s2f_pipeline *)(void *)stream, &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_info(stream, NULL));
    samples[1] = 40000;
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_push(stream, samples, 4));
    EXPECT(S2F_OK, s2f_stream_close(stream));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_close(NULL));
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    pipeline = open_cpu(arguments[1]);
    speech = read_voice(arguments[2]);
    settle(arguments[3]);
    mistakes();
    close_under_a_finish();
    formats();
    return failures != 0;
}
