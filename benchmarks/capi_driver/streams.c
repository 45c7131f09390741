#include "driver.h"

#include <stdio.h>

int32_t open_stream(hand *own, s2f_stream **stream)
{
    s2f_stream_options options;
    s2f_stream_options_init(&options);
    options.sample_rate = RATE;
    options.channels = 1;
    return told(s2f_stream_open(own->pipeline, &options, stream));
}

int32_t look(hand *own, s2f_stream *stream, int32_t *fresh)
{
    return told(s2f_stream_poll(stream, own->image, own->result.bytes_needed, &own->result, fresh));
}

const float *piece_of(const job *work, long number)
{
    return work->pcm + (size_t)number % (work->frames / PIECE) * PIECE; /* the speech over and over */
}

int32_t run_stream(const job *work)
{
    hand own;
    s2f_stream *opened = NULL;
    int32_t code = open_hand(work, &own), fresh = 0;
    code = code == S2F_OK ? open_stream(&own, &opened) : code;
    double begin = now_ms();
    for (long number = 0; code == S2F_OK && number < work->count; number++) {
        rest_ms(begin + 1e3 * PIECE / RATE * (double)(number + 1) - now_ms());
        double before = now_ms();
        code = told(s2f_stream_push(opened, piece_of(work, number), PIECE));
        double pushed = now_ms();
        code = code == S2F_OK ? look(&own, opened, &fresh) : code;
        printf("push %.6f\npoll %.6f\n", pushed - before, now_ms() - pushed);
        if (fresh) {
            printf("portrait %.3f\n", (double)(number + 1) * PIECE / RATE);
        }
    }
    s2f_stream_close(opened);
    close_hand(&own);
    return code;
}

int32_t run_hours(const job *work)
{
    hand own;
    s2f_stream *opened = NULL;
    long every = work->count < 100 ? 1 : work->count / 100;
    int32_t code = open_hand(work, &own), fresh = 0;
    code = code == S2F_OK ? open_stream(&own, &opened) : code;
    for (long number = 0; code == S2F_OK && number < work->count; number++) {
        code = told(s2f_stream_push(opened, piece_of(work, number), PIECE));
        if (code == S2F_OK && (number + 1) % every == 0) {
            code = look(&own, opened, &fresh);
            printf("rss %ld %ld\n", number + 1, resident_kib());
        }
    }
    s2f_stream_close(opened);
    close_hand(&own);
    return code;
}
