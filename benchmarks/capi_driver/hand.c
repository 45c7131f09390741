#define _POSIX_C_SOURCE 200809L

#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

void rest_ms(double ms)
{
    if (ms <= 0) {
        return;
    }
    struct timespec pause = {(time_t)(ms / 1e3), (long)(ms * 1e6) % 1000000000L};
    nanosleep(&pause, NULL);
}

int32_t told(int32_t code)
{
    if (code != S2F_OK) {
        fprintf(stderr, "capi_driver: error [%d]: %s\n", (int)code, s2f_last_error());
    }
    return code;
}

int32_t share_hand(const job *work, s2f_pipeline *pipeline, hand *taken)
{
    memset(taken, 0, sizeof *taken);
    taken->pipeline = pipeline;
    s2f_request_init(&taken->request);
    s2f_result_init(&taken->result);
    taken->request.steps = work->steps;
    int32_t code = told(s2f_info(pipeline, &taken->result));
    taken->image = code == S2F_OK ? malloc(taken->result.bytes_needed) : NULL;
    return code == S2F_OK && taken->image == NULL ? S2F_UNEXPECTED : code;
}

static int32_t open_pipeline(const job *work, s2f_pipeline **pipeline)
{
    s2f_options options;
    s2f_options_init(&options);
    options.device = "cpu";
    options.threads = work->threads;
    return told(s2f_open(work->bundle, &options, pipeline));
}

int32_t open_hand(const job *work, hand *taken)
{
    s2f_pipeline *pipeline = NULL;
    memset(taken, 0, sizeof *taken);
    int32_t code = open_pipeline(work, &pipeline);
    return code == S2F_OK ? share_hand(work, pipeline, taken) : code;
}

void close_hand(hand *taken)
{
    free(taken->image);
    s2f_close(taken->pipeline);
}

int32_t draw(const job *work, hand *taken)
{
    return s2f_generate(taken->pipeline, work->pcm, work->frames, RATE, 1, &taken->request, taken->image,
                        taken->result.bytes_needed, &taken->result);
}

long resident_kib(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        if (fscanf(file, "%*s %ld", &pages) != 1) {
            pages = 0;
        }
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}
