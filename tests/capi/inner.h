/* Python code in the interpreter that the library has started, for tests only: the functions of libpython, which are
 * global in a process that has opened a pipeline. */
#ifndef INNER_H
#define INNER_H

#include "host.h"

#include <dlfcn.h>

static inline void find_in(void *library, const char *name, void *pointer)
{
    void *found = dlsym(library, name);
    if (found == NULL)
        exit(3);
    memcpy(pointer, &found, sizeof(found));
}

static inline void find_python(const char *name, void *pointer)
{
    find_in(RTLD_DEFAULT, name, pointer);
}

static inline void python(const char *code)
{
    int (*ensure)(void), (*run)(const char *), state, result;
    void (*release)(int);
    find_python("PyGILState_Ensure", &ensure);
    find_python("PyRun_SimpleString", &run);
    find_python("PyGILState_Release", &release);
    state = ensure();
    result = run(code);
    release(state);
    if (result != 0) {
        printf("this Python failed: %s\n", code);
        exit(3);
    }
}

/* A first pipeline, so that Python runs and everything is imported; then `folder` is where modules are found. */
static inline s2f_pipeline *open_with_python(const char *bundle, const char *folder)
{
    static char code[4096];
    s2f_pipeline *pipeline = open_cpu(bundle);
    snprintf(code, sizeof(code), "import sys; sys.path.insert(0, '%s')", folder);
    python(code);
    return pipeline;
}

#endif
