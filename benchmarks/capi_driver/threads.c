#include "driver.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORKERS 64

/* What a worker draws on, and what it must draw: the images of the seeds 0..count−1, drawn by one thread before. */
typedef struct worker {
    const job *work;
    s2f_pipeline *shared; /* NULL: opens its own */
    const uint8_t *expected;
    int32_t code;
    long different;
} worker;

static void *worker_run(void *user)
{
    worker *self = user;
    hand own;
    self->code = self->shared == NULL ? open_hand(self->work, &own) : share_hand(self->work, self->shared, &own);
    for (long call = 0; call < self->work->count && self->code == S2F_OK; call++) {
        size_t size = own.result.bytes_needed;
        own.request.seed = call;
        self->code = told(draw(self->work, &own));
        self->different += memcmp(own.image, self->expected + (size_t)call * size, size) != 0;
    }
    if (self->shared == NULL) {
        close_hand(&own);
    } else {
        free(own.image);
    }
    return NULL;
}

static int32_t run_workers(const job *work, s2f_pipeline *shared, const uint8_t *expected)
{
    worker workers[MAX_WORKERS];
    pthread_t threads[MAX_WORKERS];
    long started = 0, different = 0;
    int32_t code = S2F_OK;
    for (; started < work->workers && started < MAX_WORKERS; started++) {
        workers[started] = (worker){work, started % 2 == 0 ? shared : NULL, expected, S2F_OK, 0};
        if (pthread_create(&threads[started], NULL, worker_run, &workers[started]) != 0) {
            code = S2F_UNEXPECTED;
            break;
        }
    }
    for (long i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
        code = code == S2F_OK ? workers[i].code : code;
        different += workers[i].different;
    }
    printf(different == 0 ? "equal\n" : "%ld different\n", different);
    return code == S2F_OK && different != 0 ? S2F_UNEXPECTED : code;
}

int32_t run_threads(const job *work)
{
    hand own;
    int32_t code = open_hand(work, &own);
    size_t size = own.result.bytes_needed;
    uint8_t *expected = code == S2F_OK ? malloc(size * (size_t)work->count) : NULL;
    for (long call = 0; call < work->count && code == S2F_OK && expected != NULL; call++) {
        own.request.seed = call;
        code = told(draw(work, &own));
        memcpy(expected + (size_t)call * size, own.image, size);
    }
    if (code == S2F_OK) {
        code = expected == NULL ? S2F_UNEXPECTED : run_workers(work, own.pipeline, expected);
    }
    free(expected);
    close_hand(&own);
    return code;
}
