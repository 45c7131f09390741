/* threads BUNDLE VOICE THREADS CALLS: many threads on one pipeline, then each on its own, draw what one draws. */
#include "host.h"

#include <pthread.h>

#define SEEDS 8
#define MOST_THREADS 64

static const char *bundle;
static voice speech;
static int calls;
static uint8_t *serial[SEEDS];
static size_t size;

typedef struct task {
    pthread_t thread;
    s2f_pipeline *shared;
    int first;
    int wrong;
} task;

static void *work(void *argument)
{
    task *own = argument;
    s2f_pipeline *pipeline = own->shared;
    s2f_request request;
    s2f_result result;
    uint8_t *image = malloc(size);
    if (pipeline == NULL)
        pipeline = open_cpu(bundle);
    s2f_request_init(&request);
    s2f_result_init(&result);
    for (int i = 0; i < calls; i++) {
        request.seed = (own->first + i) % SEEDS;
        if (s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, size, &result) != S2F_OK ||
            memcmp(image, serial[request.seed], size) != 0 || result.seed != request.seed)
            own->wrong++;
    }
    if (own->shared == NULL && s2f_close(pipeline) != S2F_OK)
        own->wrong++;
    free(image);
    return NULL;
}

static void run_all(int count, s2f_pipeline *shared)
{
    static task tasks[MOST_THREADS];
    for (int i = 0; i < count; i++) {
        tasks[i] = (task){.shared = shared, .first = i};
        CHECK(pthread_create(&tasks[i].thread, NULL, work, &tasks[i]) == 0);
    }
    for (int i = 0; i < count; i++) {
        pthread_join(tasks[i].thread, NULL);
        CHECK(tasks[i].wrong == 0);
    }
}

int main(int count, char **arguments)
{
    s2f_pipeline *pipeline;
    int threads;
    if (count != 5)
        return 2;
    bundle = arguments[1];
    speech = read_voice(arguments[2]);
    threads = atoi(arguments[3]) < MOST_THREADS ? atoi(arguments[3]) : MOST_THREADS;
    calls = atoi(arguments[4]);
    pipeline = open_cpu(bundle);
    for (int i = 0; i < SEEDS; i++)
        serial[i] = draw(pipeline, speech, i, &size);
    CHECK(memcmp(serial[0], serial[1], size) != 0);
    run_all(threads, pipeline);
    EXPECT(S2F_OK, s2f_close(pipeline));
    run_all(threads, NULL);
    return failures != 0;
}
