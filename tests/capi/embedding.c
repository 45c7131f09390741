/* embedding LIBPYTHON BUNDLE VOICE local|global: a program in C that runs a Python of its own, before this library and
 * after; it has opened that for itself or for all of the process. */
#include "inner.h"

#include <pthread.h>

static voice speech;
static s2f_pipeline *pipeline;

static void *draw_elsewhere(void *image)
{
    size_t size;
    *(uint8_t **)image = draw(pipeline, speech, 1, &size);
    return NULL;
}

int main(int count, char **arguments)
{
    void (*initialize)(int), *(*save)(void), (*restore)(void *), *state, *library;
    int (*finalize)(void);
    uint8_t *here, *there;
    s2f_pipeline *another;
    s2f_result result;
    pthread_t thread;
    size_t size;
    if (count != 5)
        return 2;
    library = dlopen(arguments[1], RTLD_NOW | (strcmp(arguments[4], "local") == 0 ? RTLD_LOCAL : RTLD_GLOBAL));
    if (library == NULL)
        return 2;
    find_in(library, "Py_InitializeEx", &initialize);
    find_in(library, "PyEval_SaveThread", &save);
    find_in(library, "PyEval_RestoreThread", &restore);
    find_in(library, "Py_FinalizeEx", &finalize);
    initialize(0);
    speech = read_voice(arguments[3]);
    pipeline = open_cpu(arguments[2]); /* this thread holds what Python's threads take turns with */
    here = draw(pipeline, speech, 1, &size);
    python("import runtime; assert runtime.__version__");
    state = save();
    pthread_create(&thread, NULL, draw_elsewhere, &there);
    pthread_join(thread, NULL);
    restore(state);
    CHECK(memcmp(here, there, size) == 0);
    CHECK(finalize() == 0);
    s2f_result_init(&result);
    EXPECT(S2F_BACKEND_FAILED, s2f_info(pipeline, &result));
    EXPECT(S2F_BACKEND_FAILED, s2f_close(pipeline));
    EXPECT(S2F_CLOSED, s2f_open(arguments[2], NULL, &another));
    return failures != 0;
}
