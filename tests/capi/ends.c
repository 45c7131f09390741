/* ends COMMAND BUNDLE VOICE MILLISECONDS: the program ends at some moment, and nothing has been closed.
 * ends COMMAND BUNDLE VOICE MILLISECONDS LIBPYTHON: and it runs a Python of its own. */
#include "inner.h"

#include <pthread.h>
#include <time.h>

#define THREADS 3

static const char *bundle;
static voice speech;
static int moment;

static void wait_a_moment(void)
{
    const struct timespec time = {moment / 1000, moment % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void begin(void *(*function)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, argument) != 0)
        exit(2);
}

static void *open_and_close(void *nothing)
{
    s2f_pipeline *pipeline;
    s2f_options options;
    s2f_options_init(&options);
    options.device = "cpu";
    options.threads = 1;
    while (s2f_open(bundle, &options, &pipeline) == S2F_OK)
        (void)s2f_close(pipeline);
    return nothing;
}

static void *draw_on(void *pipeline)
{
    uint8_t image[3072];
    while (s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, image, sizeof(image), NULL) == S2F_OK)
        continue;
    CHECK(strstr(s2f_last_error(), "ending") != NULL || strstr(s2f_last_error(), "ended its Python") != NULL);
    return NULL;
}

static void *listen_on(void *pipeline)
{
    s2f_stream *stream;
    while (s2f_stream_open(pipeline, NULL, &stream) == S2F_OK) {
        (void)s2f_stream_push(stream, speech.pcm, speech.frames);
        (void)s2f_stream_close(stream);
    }
    return NULL;
}

static void *leave(void *nothing)
{
    (void)nothing;
    exit(failures != 0);
}

static void leave_while_told(int32_t level, const char *message, void *user)
{
    (void)level;
    (void)message;
    (void)user;
    exit(failures != 0);
}

static int32_t leave_while_drawing(int32_t done, int32_t total, void *user)
{
    (void)total;
    (void)user;
    if (done == 1)
        exit(failures != 0);
    return 0;
}

static void within_a_callback(int drawing)
{
    static uint8_t image[3072];
    s2f_pipeline *pipeline;
    s2f_options options;
    s2f_request request;
    s2f_options_init(&options);
    s2f_request_init(&request);
    options.device = "cpu";
    options.threads = 1;
    if (drawing)
        request.progress = leave_while_drawing;
    else
        options.log = leave_while_told;
    options.log_level = 10;
    EXPECT(S2F_OK, s2f_open(bundle, &options, &pipeline));
    if (!drawing) /* the library itself has little to say */
        python("import logging; logging.getLogger('runtime').error('something')");
    (void)s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, sizeof(image), NULL);
    exit(5);
}

static void beside_all(void)
{
    s2f_pipeline *pipeline = open_cpu(bundle);
    begin(open_and_close, NULL);
    begin(draw_on, pipeline);
    begin(listen_on, pipeline);
    begin(listen_on, open_cpu(bundle));
    wait_a_moment();
}

/* A Python of the program's own. */

static void (*initialize)(int), *(*save)(void), (*restore)(void *);
static int (*finalize)(void);

static void start_python(const char *library)
{
    if (dlopen(library, RTLD_NOW | RTLD_GLOBAL) == NULL)
        exit(2);
    find_python("Py_InitializeEx", &initialize);
    find_python("PyEval_SaveThread", &save);
    find_python("PyEval_RestoreThread", &restore);
    find_python("Py_FinalizeEx", &finalize);
    initialize(0);
}

static void with_its_lock_held(void)
{
    pthread_t thread;
    (void)open_cpu(bundle); /* this thread has Python's lock, and keeps it */
    pthread_create(&thread, NULL, leave, NULL);
    pthread_join(thread, NULL);
}

static void before_the_program(void)
{
    s2f_pipeline *pipeline = open_cpu(bundle);
    void *state = save();
    for (int i = 0; i < THREADS; i++)
        begin(draw_on, pipeline);
    begin(listen_on, pipeline);
    wait_a_moment();
    restore(state);
    CHECK(finalize() == 0);
}

static void *open_here(void *made)
{
    *(s2f_pipeline **)made = open_cpu(bundle);
    return NULL;
}

static void with_a_second_interpreter(void)
{
    void *(*swap)(void *), *(*another)(void), *first;
    s2f_pipeline *pipeline = NULL;
    pthread_t thread;
    find_python("PyThreadState_Swap", &swap);
    find_python("Py_NewInterpreter", &another);
    first = swap(NULL);
    swap(first);
    CHECK(another() != NULL);
    swap(first);
    first = save();
    pthread_create(&thread, NULL, open_here, &pipeline);
    pthread_join(thread, NULL);
    CHECK(pipeline != NULL);
    restore(first);
}

int main(int count, char **arguments)
{
    const char *command = arguments[1];
    if (count < 5)
        return 2;
    bundle = arguments[2];
    speech = read_voice(arguments[3]);
    moment = atoi(arguments[4]);
    if (count > 5)
        start_python(arguments[5]);
    if (strcmp(command, "beside") == 0)
        beside_all();
    else if (strcmp(command, "drawing") == 0 || strcmp(command, "told") == 0)
        within_a_callback(command[0] == 'd');
    else if (strcmp(command, "locked") == 0)
        with_its_lock_held();
    else if (strcmp(command, "python-first") == 0)
        before_the_program();
    else if (strcmp(command, "interpreters") == 0)
        with_a_second_interpreter();
    else
        return 2;
    return failures != 0;
}
