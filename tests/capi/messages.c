/* messages BUNDLE VOICE: what the library logs, to whom, when, and on which thread. */
#include "inner.h"

#include <pthread.h>
#include <time.h>

typedef struct heard {
    s2f_pipeline *pipeline;
    pthread_t thread;
    int count, wrong_thread, lowest;
    int call_back;
    char last[512];
} heard;

static voice speech;

static void hear(int32_t level, const char *message, void *user)
{
    heard *own = user;
    own->count++;
    own->wrong_thread += !pthread_equal(own->thread, pthread_self());
    if (own->lowest == 0 || level < own->lowest)
        own->lowest = level;
    snprintf(own->last, sizeof(own->last), "%s", message);
    if (own->call_back && own->pipeline != NULL) {
        size_t size;
        own->call_back = 0;
        free(draw(own->pipeline, speech, 3, &size)); /* no lock is held that this could want */
        EXPECT(S2F_INVALID_ARGUMENT, s2f_close(own->pipeline));
    }
}

/* A listener that takes its time: s2f_close waits for it. */
static int listening, listened;

static void hear_slowly(int32_t level, const char *message, void *user)
{
    const struct timespec moment = {0, 200000000};
    (void)level;
    (void)message;
    (void)user;
    __atomic_store_n(&listening, 1, __ATOMIC_RELEASE);
    nanosleep(&moment, NULL);
    __atomic_store_n(&listened, 1, __ATOMIC_RELEASE);
}

static s2f_pipeline *open_listening(const char *bundle, heard *own, int32_t level)
{
    s2f_options options;
    s2f_options_init(&options);
    options.device = "cpu";
    options.threads = 1;
    options.log = hear;
    options.log_user = own;
    options.log_level = level;
    own->thread = pthread_self();
    EXPECT(S2F_OK, s2f_open(bundle, &options, &own->pipeline));
    return own->pipeline;
}

static void *draw_elsewhere(void *pipeline)
{
    size_t size;
    free(draw(pipeline, speech, 1, &size));
    return NULL;
}

static void close_while_it_listens(const char *bundle)
{
    const struct timespec moment = {0, 1000000};
    s2f_options options;
    s2f_pipeline *pipeline;
    pthread_t thread;
    s2f_options_init(&options);
    options.device = "cpu";
    options.threads = 1;
    options.log_level = 40;
    options.log = hear_slowly;
    EXPECT(S2F_OK, s2f_open(bundle, &options, &pipeline));
    listening = listened = 0; /* what was told while opening does not count */
    pthread_create(&thread, NULL, draw_elsewhere, pipeline);
    while (!__atomic_load_n(&listening, __ATOMIC_ACQUIRE))
        nanosleep(&moment, NULL);
    EXPECT(S2F_OK, s2f_close(pipeline));
    CHECK(__atomic_load_n(&listened, __ATOMIC_ACQUIRE));
    pthread_join(thread, NULL);
}

static const char talkative[] =
    "import logging, runtime.pipeline, threading\n"
    "from unittest import mock\n"
    "log, real = logging.getLogger('runtime.test'), runtime.pipeline.load_speech\n"
    "def load_speech(*arguments, **options):\n"
    "    log.debug('debug'), log.info('info'), log.warning('warning of %s', 'today'), log.error('\\udcff')\n"
    "    log.error('%d', 'cannot be formatted')\n"
    "    return real(*arguments, **options)\n"
    "runtime.pipeline.load_speech = load_speech\n";

static const char in_background[] = "t = threading.Thread(target=log.warning, args=('from behind',))\n"
                                    "t.start()\nt.join()\n";

static const char far_too_many[] = "for i in range(5000): log.warning('number %d', i)\n";

int main(int count, char **arguments)
{
    heard all = {0}, few = {0}, late;
    s2f_pipeline *quiet, *open_all, *open_few;
    s2f_result result;
    pthread_t thread;
    size_t size;
    if (count != 3)
        return 2;
    speech = read_voice(arguments[2]);
    quiet = open_cpu(arguments[1]);
    python(talkative);
    open_all = open_listening(arguments[1], &all, 10);
    open_few = open_listening(arguments[1], &few, 0);
    all.count = few.count = all.lowest = 0; /* what devices are passed over is told while opening */
    free(draw(quiet, speech, 1, &size));
    CHECK(all.count == 0 && few.count == 0);
    free(draw(open_all, speech, 1, &size));
    CHECK(all.count == 4 && all.lowest == 10 && few.count == 0 && all.wrong_thread == 0);
    free(draw(open_few, speech, 1, &size));
    CHECK(few.count == 2 && few.lowest == 30 && all.count == 4);

    pthread_create(&thread, NULL, draw_elsewhere, open_few); /* told on the thread of the call */
    pthread_join(thread, NULL);
    CHECK(few.count == 4 && few.wrong_thread == 2);

    few.call_back = 1;
    free(draw(open_few, speech, 1, &size));
    CHECK(few.count == 6);

    s2f_result_init(&result);
    python(in_background); /* told by the next call with each */
    CHECK(few.count == 6 && all.count == 4);
    EXPECT(S2F_OK, s2f_info(open_few, &result));
    EXPECT(S2F_OK, s2f_info(open_all, &result));
    CHECK(few.count >= 7 && strcmp(few.last, "from behind") == 0 && strcmp(all.last, "from behind") == 0);

    few.count = 0;
    python(far_too_many);
    EXPECT(S2F_OK, s2f_info(open_few, &result));
    CHECK(few.count == 256 && strcmp(few.last, "number 4999") == 0);
    EXPECT(S2F_OK, s2f_close(open_few));
    late = few;
    python(in_background);
    free(draw(open_all, speech, 1, &size));
    EXPECT(S2F_OK, s2f_close(open_all));
    python("assert logging.getLogger('runtime').level == 0 and not logging.getLogger('runtime').handlers");
    free(draw(quiet, speech, 1, &size));
    CHECK(few.count == late.count && all.count > 8);
    EXPECT(S2F_OK, s2f_close(quiet));
    close_while_it_listens(arguments[1]);
    return failures != 0;
}
