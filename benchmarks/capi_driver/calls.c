#include "driver.h"

#include <stdio.h>
#include <stdlib.h>

int32_t run_rounds(const job *work)
{
    hand own;
    int32_t code = open_hand(work, &own);
    char line[32];
    if (code == S2F_OK) {
        puts("ready");
        fflush(stdout);
    }
    while (code == S2F_OK && fgets(line, sizeof line, stdin) != NULL) {
        for (long left = strtol(line, NULL, 10); left > 0 && code == S2F_OK; left--) {
            double begin = now_ms();
            code = told(draw(work, &own));
            printf("%.6f %.6f\n", now_ms() - begin, own.result.total_ms);
        }
        fflush(stdout);
    }
    close_hand(&own);
    return code;
}

int32_t run_start(const job *work)
{
    hand own, second;
    printf("rss 0 %ld\n", resident_kib());
    double begin = now_ms();
    int32_t code = open_hand(work, &own);
    printf("open %.6f\n", now_ms() - begin);
    if (code == S2F_OK) {
        begin = now_ms();
        code = told(draw(work, &own));
        printf("first %.6f\nrss 1 %ld\n", now_ms() - begin, resident_kib());
    }
    if (code == S2F_OK) {
        code = open_hand(work, &second);
        code = code == S2F_OK ? told(draw(work, &second)) : code;
        printf("rss 2 %ld\n", resident_kib());
        close_hand(&second);
    }
    begin = now_ms();
    close_hand(&own);
    printf("close %.6f\n", now_ms() - begin);
    return code;
}

int32_t run_soak(const job *work)
{
    hand own;
    int32_t code = open_hand(work, &own);
    long every = work->count < 100 ? 1 : work->count / 100;
    for (long call = 0; call < work->count && code == S2F_OK; call++) {
        own.request.seed = call;
        double begin = now_ms();
        code = told(draw(work, &own));
        printf("%.6f\n", now_ms() - begin);
        if ((call + 1) % every == 0) {
            printf("rss %ld %ld\n", call + 1, resident_kib());
            fflush(stdout);
        }
    }
    close_hand(&own);
    return code;
}

/* A second and a half of speech, and whatever portrait there is by then. */
static int32_t converse(const job *work, hand *own)
{
    s2f_stream *opened = NULL;
    int32_t code = open_stream(own, &opened), fresh = 0;
    for (long number = 0; code == S2F_OK && number < 75; number++) {
        code = told(s2f_stream_push(opened, piece_of(work, number), PIECE));
        code = code == S2F_OK ? look(own, opened, &fresh) : code;
    }
    int32_t closed = opened == NULL ? S2F_OK : told(s2f_stream_close(opened));
    return code != S2F_OK ? code : closed;
}

int32_t run_cycles(const job *work)
{
    int32_t code = S2F_OK;
    for (long cycle = 0; cycle < work->count && code == S2F_OK; cycle++) {
        hand own;
        size_t size = 0;
        code = open_hand(work, &own);
        code = code == S2F_OK ? told(draw(work, &own)) : code;
        code = code == S2F_OK ? told(s2f_encode_png(own.pipeline, own.image, &own.result, NULL, 0, &size)) : code;
        uint8_t *png = code == S2F_OK ? malloc(size) : NULL;
        if (png != NULL) {
            code = told(s2f_encode_png(own.pipeline, own.image, &own.result, png, size, &size));
            code = code == S2F_OK ? converse(work, &own) : code;
            free(png);
        }
        close_hand(&own);
        printf("rss %ld %ld\n", cycle + 1, resident_kib());
        fflush(stdout);
    }
    return code;
}
