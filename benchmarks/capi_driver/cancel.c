#define _POSIX_C_SOURCE 200809L

#include "driver.h"

#include <pthread.h>
#include <stdio.h>

/* One wish to cancel: `canceller` waits, then sets `wished`; on_step sees it at the next step. */
typedef struct wish {
    pthread_mutex_t lock;
    int wished;
    double after_ms, at_ms, last_step_ms;
} wish;

static int32_t on_step(int32_t done, int32_t total, void *user)
{
    wish *made = user;
    (void)total;
    double now = now_ms();
    if (made->after_ms < 0 && done > 0) {
        printf("step %.6f\n", now - made->last_step_ms);
    }
    made->last_step_ms = now;
    pthread_mutex_lock(&made->lock);
    int wished = made->wished;
    pthread_mutex_unlock(&made->lock);
    return wished;
}

static void *canceller(void *user)
{
    wish *made = user;
    rest_ms(made->after_ms);
    pthread_mutex_lock(&made->lock);
    made->at_ms = now_ms();
    made->wished = 1;
    pthread_mutex_unlock(&made->lock);
    return NULL;
}

/* How long a call takes that nobody cancels, the median of eleven; its steps are printed. */
static double undisturbed_ms(const job *work, hand *own, int32_t *code)
{
    double times[11];
    for (int i = 0; i < 11 && *code == S2F_OK; i++) {
        double begin = now_ms();
        *code = told(draw(work, own));
        double taken = now_ms() - begin;
        int at = i;
        for (; at > 0 && times[at - 1] > taken; at--) {
            times[at] = times[at - 1];
        }
        times[at] = taken;
    }
    return *code == S2F_OK ? times[5] : 0;
}

int32_t run_cancel(const job *work)
{
    hand own;
    wish made = {.lock = PTHREAD_MUTEX_INITIALIZER, .after_ms = -1};
    int32_t code = open_hand(work, &own);
    own.request.progress = on_step;
    own.request.progress_user = &made;
    double whole = undisturbed_ms(work, &own, &code);
    for (long call = 0; call < work->count && code == S2F_OK; call++) {
        pthread_t thread;
        made.wished = 0;
        made.after_ms = whole * (double)call / (double)work->count;
        if (pthread_create(&thread, NULL, canceller, &made) != 0) {
            code = S2F_UNEXPECTED;
            break;
        }
        code = draw(work, &own);
        double end = now_ms();
        pthread_join(thread, NULL);
        printf("%.6f %d\n", end - made.at_ms, (int)code);
        code = code == S2F_CANCELLED ? S2F_OK : told(code);
    }
    close_hand(&own);
    return code;
}
