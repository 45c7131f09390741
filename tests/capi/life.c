/* life COMMAND BUNDLE VOICE: what a program lives through with the library. */
#include "host.h"

#include <errno.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4

static const char *bundle;
static voice speech;

static void pause_ms(long ms)
{
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* fork: the child gets a code from every call, and the parent goes on. */

static void in_child(s2f_pipeline *pipeline, s2f_stream *stream)
{
    s2f_pipeline *another;
    s2f_stream *branch;
    s2f_stream_state state;
    s2f_result result;
    uint8_t image[3072];
    size_t needed;
    int32_t fresh;
    alarm(20); /* a call that hangs ends the child, and the test */
    s2f_result_init(&result);
    s2f_stream_state_init(&state);
    CHECK(s2f_version()[0] != '\0' && s2f_strerror(42)[0] != '\0');
    EXPECT(S2F_BACKEND_FAILED, s2f_open(bundle, NULL, &another));
    EXPECT(S2F_BACKEND_FAILED, s2f_info(pipeline, &result));
    EXPECT(S2F_BACKEND_FAILED, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, image, 3072, NULL));
    EXPECT(S2F_BACKEND_FAILED, s2f_generate_file(pipeline, "x.wav", NULL, image, 3072, NULL));
    EXPECT(S2F_BACKEND_FAILED, s2f_encode_png(pipeline, image, &result, NULL, 0, &needed));
    EXPECT(S2F_BACKEND_FAILED, s2f_stream_open(pipeline, NULL, &branch));
    EXPECT(S2F_BACKEND_FAILED, s2f_stream_push(stream, speech.pcm, 100));
    EXPECT(S2F_BACKEND_FAILED, s2f_stream_poll(stream, image, 3072, NULL, &fresh));
    EXPECT(S2F_BACKEND_FAILED, s2f_stream_info(stream, &state));
    EXPECT(S2F_BACKEND_FAILED, s2f_stream_finish(stream, 0, image, 3072, NULL));
    EXPECT(S2F_BACKEND_FAILED, s2f_stream_close(stream));
    EXPECT(S2F_BACKEND_FAILED, s2f_close(pipeline));
    CHECK(strstr(s2f_last_error(), "fork") != NULL);
    fflush(stdout);
    _exit(failures != 0);
}

static int stop;

static void *keep_drawing(void *pipeline)
{
    size_t size;
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE))
        free(draw(pipeline, speech, 1, &size));
    return NULL;
}

static void forking(void)
{
    s2f_pipeline *pipeline;
    s2f_stream *stream;
    pthread_t thread;
    size_t size;
    int status;
    pid_t child = fork(); /* before s2f_open: both may use the library */
    if (child == 0) {
        pipeline = open_cpu(bundle);
        free(draw(pipeline, speech, 5, &size));
        _exit(failures != 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    pipeline = open_cpu(bundle);
    EXPECT(S2F_OK, s2f_stream_open(pipeline, NULL, &stream));
    pthread_create(&thread, NULL, keep_drawing, pipeline); /* so that Python is busy when the process is copied */
    for (int i = 0; i < 5; i++) {
        pause_ms(7);
        child = fork();
        if (child == 0)
            in_child(pipeline, stream);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    free(draw(pipeline, speech, 5, &size));
    EXPECT(S2F_OK, s2f_stream_close(stream));
    EXPECT(S2F_OK, s2f_close(pipeline));
}

/* host: nothing of the process is changed. */

extern char **environ;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted++;
}

static size_t snapshot(char *text, size_t room)
{
    size_t used = 0;
    sigset_t blocked;
    mode_t mask = umask(0);
    umask(mask);
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    for (int i = 1; i < NSIG; i++) {
        struct sigaction action;
        if (sigaction(i, NULL, &action) == 0)
            used += (size_t)snprintf(text + used, room - used, "%d:%lx:%x:%d ", i,
                                     (unsigned long)(uintptr_t)action.sa_handler, (unsigned)action.sa_flags,
                                     sigismember(&blocked, i));
    }
    used += (size_t)snprintf(text + used, room - used, "%s %o ", setlocale(LC_ALL, NULL), (unsigned)mask);
    if (getcwd(text + used, room - used) == NULL)
        exit(2);
    used = strlen(text);
    for (char **one = environ; *one != NULL; one++)
        if (strncmp(*one, "ORT_DISABLE_TELEMETRY=", 22) != 0) /* the only one, see s2f.h */
            used += (size_t)snprintf(text + used, room - used, "%s\n", *one);
    return used;
}

static int32_t interrupt(int32_t done, int32_t total, void *user)
{
    (void)total;
    (void)user;
    if (done == 1)
        kill(getpid(), SIGINT);
    return 0;
}

static void unchanged(void)
{
    static char before[1 << 17], after[1 << 17];
    struct sigaction action;
    s2f_pipeline *pipeline;
    s2f_request request;
    uint8_t image[3072];
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_interrupt;
    sigaction(SIGINT, &action, NULL);
    snapshot(before, sizeof(before));
    pipeline = open_cpu(bundle);
    s2f_request_init(&request);
    request.progress = interrupt;
    EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, 3072, NULL));
    CHECK(interrupted == 1);
    snapshot(after, sizeof(after));
    CHECK(strcmp(before, after) == 0);
    EXPECT(S2F_OK, s2f_close(pipeline));
    snapshot(after, sizeof(after));
    CHECK(strcmp(before, after) == 0);
}

/* masks: threads of the library leave signals to those of the program. */

static void masks(void)
{
    s2f_pipeline *pipeline;
    s2f_stream *stream;
    s2f_options options;
    FILE *tasks;
    char line[256];
    int others = 0, blocked = 0;
    s2f_options_init(&options);
    options.device = "cpu";
    options.threads = 3;
    EXPECT(S2F_OK, s2f_open(bundle, &options, &pipeline));
    EXPECT(S2F_OK, s2f_stream_open(pipeline, NULL, &stream));
    tasks = popen("grep -h -E '^(Pid|SigBlk):' /proc/$PPID/task/*/status", "r");
    while (tasks != NULL && fgets(line, sizeof(line), tasks) != NULL) {
        static long pid;
        if (strncmp(line, "Pid:", 4) == 0) {
            pid = strtol(line + 4, NULL, 10);
        } else if (pid != getpid()) {
            const unsigned long long set = strtoull(line + 7, NULL, 16);
            others++;
            blocked += (set >> (SIGINT - 1) & 1) && (set >> (SIGTERM - 1) & 1) && (set >> (SIGALRM - 1) & 1);
        }
    }
    pclose(tasks);
    CHECK(others >= 3 && blocked == others);
    EXPECT(S2F_OK, s2f_close(pipeline));
    EXPECT(S2F_CLOSED, s2f_stream_close(stream));
}

/* opens: the first calls of a process, all at once. */

static pthread_barrier_t barrier;

static void *open_and_draw(void *result)
{
    s2f_pipeline *pipeline;
    size_t size;
    pthread_barrier_wait(&barrier);
    pipeline = open_cpu(bundle);
    *(uint8_t **)result = draw(pipeline, speech, 1, &size);
    EXPECT(S2F_OK, s2f_close(pipeline));
    return NULL;
}

static void opens(void)
{
    pthread_t threads[THREADS];
    uint8_t *images[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, open_and_draw, &images[i]);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK(memcmp(images[0], images[i], 3072) == 0);
    }
}

/* thread: the thread that opened first is gone, and what it has opened serves others. */

static void *open_only(void *pipeline)
{
    *(s2f_pipeline **)pipeline = open_cpu(bundle);
    return NULL;
}

static void *draw_only(void *pipeline)
{
    size_t size;
    free(draw(*(s2f_pipeline **)pipeline, speech, 1, &size));
    return NULL;
}

static void on_stack(size_t bytes, void *(*function)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, bytes) == 0);
    CHECK(pthread_create(&thread, &attributes, function, argument) == 0);
    pthread_join(thread, NULL);
}

static void small_threads(void)
{
    s2f_pipeline *pipeline = NULL;
    on_stack(1024 * 1024, open_only, &pipeline);
    for (int i = 0; i < 20; i++)
        on_stack(256 * 1024, draw_only, &pipeline);
    draw_only(&pipeline);
    EXPECT(S2F_OK, s2f_close(pipeline));
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    bundle = arguments[2];
    speech = read_voice(arguments[3]);
    if (strcmp(arguments[1], "fork") == 0)
        forking();
    else if (strcmp(arguments[1], "host") == 0)
        unchanged();
    else if (strcmp(arguments[1], "masks") == 0)
        masks();
    else if (strcmp(arguments[1], "opens") == 0)
        opens();
    else if (strcmp(arguments[1], "thread") == 0)
        small_threads();
    else
        return 2;
    return failures != 0;
}
