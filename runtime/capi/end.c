/* The end of the process, or of the program's own Python: nothing of this library may be at work while what it stands on
 * is taken apart. So calls are counted; at the end no further one begins, what is drawn is given up at its next step, and
 * those in progress are waited for. */
#define _GNU_SOURCE
#include "library.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define PATIENCE_S 3

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* whoever holds it waits for nothing else */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int inside;       /* calls in progress */
static int ending;       /* no more begin */
static int has_given_up; /* what was drawn without a call, for a stream, as well */
static __thread int own; /* calls of this thread in progress: more than one where a callback makes another */

int32_t come_in(char *message)
{
    int refused;
    pthread_mutex_lock(&mutex);
    refused = ending;
    inside += !refused;
    pthread_mutex_unlock(&mutex);
    if (refused)
        return refuse(message, S2F_CLOSED, "The program, or the Python in it, is ending: nothing can be opened or used any more.");
    own++;
    return S2F_OK;
}

void go_out(void)
{
    own--;
    pthread_mutex_lock(&mutex);
    inside--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void *give_up(void *thread)
{
    char message[BRIDGE_MESSAGE_BYTES];
    (void)bridge.give_up((uint64_t)(uintptr_t)thread, message);
    pthread_mutex_lock(&mutex);
    has_given_up = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

/* Begin to give up, on a thread of its own: another may never let go of Python's lock. Returns whether it has begun. */
static int begin_to_give_up(void)
{
    pthread_t thread;
    sigset_t signals;
    int failed;
    hold_signals(&signals);
    failed = pthread_create(&thread, NULL, give_up, (void *)(uintptr_t)pthread_self());
    release_signals(&signals);
    if (!failed)
        pthread_detach(thread);
    return !failed;
}

static void wait_for_all(const struct timespec *until, int is_giving_up)
{
    int late = 0;
    pthread_mutex_lock(&mutex);
    while (!late && (inside > own || (is_giving_up && !has_given_up)))
        late = pthread_cond_clockwait(&changed, &mutex, CLOCK_MONOTONIC, until) != 0;
    pthread_mutex_unlock(&mutex);
}

void end(void)
{
    char message[BRIDGE_MESSAGE_BYTES];
    struct timespec until;
    void *python;
    int again;
    const int32_t state = started(message);
    if (state == S2F_BACKEND_FAILED) /* a forked child, or Python is gone already */
        return;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += PATIENCE_S;
    pthread_mutex_lock(&mutex);
    again = ending;
    ending = 1;
    pthread_mutex_unlock(&mutex);
    if (again)
        return;
    python = let_go_of_python();
    wait_for_all(&until, state == S2F_OK && begin_to_give_up());
    take_python_again(python);
}

void stay_last(void)
{
    (void)atexit(end);
}
