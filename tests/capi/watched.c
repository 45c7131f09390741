/* watched COMMAND BUNDLE VOICE: progress, cancelling, time limits, closing, and calls from within a callback. */
#include "host.h"

#include <pthread.h>
#include <time.h>

static voice speech;
static s2f_pipeline *pipeline, *another;
static uint8_t image[3072];

static double now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static void pause_ms(long ms)
{
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int32_t with(const s2f_request *request)
{
    return s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, request, image, sizeof(image), NULL);
}

typedef struct told {
    int calls, last, total, cancel_at, pause;
} told;

static int32_t note(int32_t done, int32_t total, void *user)
{
    told *own = user;
    own->calls++;
    own->last = done;
    own->total = total;
    pause_ms(own->pause);
    return done == own->cancel_at ? -1 : 0;
}

static void progress(void)
{
    told all = {0, -1, 0, -1, 0}, cancelled = {0, -1, 0, 2, 0}, slow = {0, -1, 0, -1, 30};
    uint8_t untouched[3072];
    s2f_request request;
    double begin;
    s2f_request_init(&request);
    request.progress = note;
    request.progress_user = &all;
    EXPECT(S2F_OK, with(&request));
    CHECK(all.calls == 5 && all.last == 4 && all.total == 4);
    memset(image, 0x5A, sizeof(image));
    memcpy(untouched, image, sizeof(image));
    request.progress_user = &cancelled;
    EXPECT(S2F_CANCELLED, with(&request));
    CHECK(cancelled.calls == 3 && cancelled.last == 2);
    request.progress_user = &slow;
    request.timeout_ms = 50;
    begin = now_ms();
    EXPECT(S2F_TIMED_OUT, with(&request));
    CHECK(slow.calls < 4 && now_ms() - begin < 2000);
    CHECK(memcmp(image, untouched, sizeof(image)) == 0);
    request.progress = NULL;
    request.timeout_ms = 60000;
    EXPECT(S2F_OK, with(&request));
}

/* While one thread draws and its progress function waits, others look, run out of time, or close. */

static int inside, let_go;

static int is_set(const int *flag)
{
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

static void set(int *flag)
{
    __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
}

static int32_t hold(int32_t done, int32_t total, void *user)
{
    (void)total;
    (void)user;
    set(&inside);
    while (done == 1 && !is_set(&let_go))
        pause_ms(1);
    return 0;
}

static void *draw_slowly(void *code)
{
    s2f_request request;
    s2f_request_init(&request);
    request.progress = hold;
    *(int32_t *)code = with(&request);
    return NULL;
}

static void *close_it(void *code)
{
    *(int32_t *)code = s2f_close(pipeline);
    return NULL;
}

static void closing(void)
{
    pthread_t drawer, closer;
    int32_t drawn = -1, closed = -1, code = S2F_OK;
    s2f_request request;
    s2f_result result;
    s2f_request_init(&request);
    s2f_result_init(&result);
    pthread_create(&drawer, NULL, draw_slowly, &drawn);
    while (!is_set(&inside))
        pause_ms(1);
    EXPECT(S2F_OK, s2f_info(pipeline, &result));
    request.timeout_ms = 40;
    EXPECT(S2F_TIMED_OUT, with(&request));
    pthread_create(&closer, NULL, close_it, &closed);
    for (int i = 0; i < 2000 && code == S2F_OK; i++) {
        code = s2f_info(pipeline, &result);
        pause_ms(1);
    }
    /* New calls are refused while the close still waits. */
    CHECK(code == S2F_CLOSED && __atomic_load_n(&closed, __ATOMIC_ACQUIRE) == -1);
    set(&let_go);
    pthread_join(drawer, NULL);
    pthread_join(closer, NULL);
    CHECK(drawn == S2F_OK && closed == S2F_OK);
    EXPECT(S2F_CLOSED, s2f_close(pipeline));
    pipeline = NULL;
}

/* Calls from within a progress function: what would wait for itself gives a code. */

static int32_t call_back(int32_t done, int32_t total, void *user)
{
    static uint8_t other[3072];
    s2f_stream *stream = user;
    s2f_result result;
    size_t needed;
    int32_t fresh;
    (void)total;
    if (done != 1)
        return 0;
    s2f_result_init(&result);
    EXPECT(S2F_INVALID_ARGUMENT, with(NULL));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_close(pipeline));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_stream_close(stream));
    EXPECT(S2F_OK, s2f_info(pipeline, &result));
    EXPECT(S2F_OK, s2f_encode_png(pipeline, other, &result, NULL, 0, &needed));
    EXPECT(S2F_OK, s2f_stream_push(stream, speech.pcm, 100));
    EXPECT(S2F_OK, s2f_stream_poll(stream, other, sizeof(other), &result, &fresh));
    EXPECT(S2F_OK, s2f_generate(another, speech.pcm, speech.frames, RATE, 1, NULL, other, sizeof(other), &result));
    EXPECT(S2F_INVALID_ARGUMENT, s2f_info(NULL, &result)); /* a failure in here is none of the call outside */
    return 0;
}

static void within(const char *bundle)
{
    s2f_request request;
    s2f_stream *stream;
    another = open_cpu(bundle);
    EXPECT(S2F_OK, s2f_stream_open(pipeline, NULL, &stream));
    s2f_request_init(&request);
    request.progress = call_back;
    request.progress_user = stream;
    EXPECT(S2F_OK, with(&request));
    EXPECT(S2F_OK, s2f_stream_close(stream));
    EXPECT(S2F_OK, s2f_close(another));
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    pipeline = open_cpu(arguments[2]);
    speech = read_voice(arguments[3]);
    if (strcmp(arguments[1], "progress") == 0)
        progress();
    else if (strcmp(arguments[1], "closing") == 0)
        closing();
    else if (strcmp(arguments[1], "within") == 0)
        within(arguments[2]);
    else
        return 2;
    if (pipeline != NULL)
        EXPECT(S2F_OK, s2f_close(pipeline));
    return failures != 0;
}
