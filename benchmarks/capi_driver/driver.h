/* What the modes of the driver share. */
#ifndef DRIVER_H
#define DRIVER_H

#include <s2f.h>

#include <stddef.h>
#include <stdint.h>

#define RATE 16000
#define PIECE (RATE / 50)

/* The words of the command line. */
typedef struct job {
    const char *bundle;
    float *pcm;
    size_t frames;
    int32_t steps, threads;
    long count, workers;
} job;

/* A pipeline, what is asked of it and room for what it draws. */
typedef struct hand {
    s2f_pipeline *pipeline;
    s2f_request request;
    s2f_result result;
    uint8_t *image;
} hand;

double now_ms(void);
void rest_ms(double ms);
long resident_kib(void);

/* Returns the code; anything but S2F_OK goes to stderr with the library's words. */
int32_t told(int32_t code);

/* A hand on a pipeline of its own, which close_hand closes; or on one that others use as well. */
int32_t open_hand(const job *work, hand *opened);
int32_t share_hand(const job *work, s2f_pipeline *pipeline, hand *taken);
void close_hand(hand *opened);

int32_t draw(const job *work, hand *with);

/* Pieces of 20 ms: a stream for them, the given one of the speech over and over, and the newest portrait. */
int32_t open_stream(hand *own, s2f_stream **opened);
const float *piece_of(const job *work, long number);
int32_t look(hand *own, s2f_stream *stream, int32_t *fresh);

/* The modes. Each returns a code that has been told. */
int32_t run_start(const job *work);
int32_t run_rounds(const job *work);
int32_t run_soak(const job *work);
int32_t run_cycles(const job *work);
int32_t run_cancel(const job *work);
int32_t run_stream(const job *work);
int32_t run_hours(const job *work);
int32_t run_threads(const job *work);

#endif
