/* Starting Python: once, when the first pipeline is opened, and never ending it. The way to it is fixed when libs2f is
 * built; the environment has no say. A process that runs Python already lends its own.
 *
 * cffi's embedding mode is not used: its start writes to stderr and ends the process where something is missing, and it
 * waits for ever in a process whose Python (before 3.12) has looked up an attribute of a capsule. What it makes is an
 * ordinary extension module, loaded here. */
#define _GNU_SOURCE
#include <Python.h>

#include "library.h"
#include "settings.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ORIGIN "$ORIGIN/"

PyObject *PyInit__s2f_native(void); /* made by cffi */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pid_t starting; /* the process that has begun to start; 0 before */
static pid_t ready;    /* the process in which everything is loaded; 0 before */
static int is_ours;    /* whether this library has started Python */
static char broken[BRIDGE_MESSAGE_BYTES]; /* why Python could not be started; there is no second try */
static char origin[PATH_MAX];             /* the folder of this library */

/* At load, because a relative path means nothing any more once the program has changed its working directory. */
__attribute__((constructor)) static void locate(void)
{
    Dl_info here;
    char *slash;
    if (dladdr(&mutex, &here) == 0 || here.dli_fname == NULL || realpath(here.dli_fname, origin) == NULL)
        origin[0] = '\0';
    slash = strrchr(origin, '/');
    if (slash != NULL)
        *slash = '\0';
}

/* A path of settings.h, which may be relative to the folder of this library: "$ORIGIN/../bin/python3". */
static const char *resolve(const char *setting, char *path)
{
    size_t folder = strlen(origin);
    if (strncmp(setting, ORIGIN, strlen(ORIGIN)) != 0)
        return setting;
    setting += strlen(ORIGIN);
    for (; strncmp(setting, "../", 3) == 0; setting += 3)
        while (folder > 0 && origin[--folder] != '/')
            continue;
    if (snprintf(path, PATH_MAX, "%.*s/%s", (int)folder, origin, setting) >= PATH_MAX)
        return "";
    return path;
}

void hold_signals(sigset_t *before)
{
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}; /* of a thread's own making */
    sigset_t held;
    sigfillset(&held);
    for (size_t i = 0; i < COUNT(own); i++)
        sigdelset(&held, own[i]);
    pthread_sigmask(SIG_BLOCK, &held, before);
}

void release_signals(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

/* numpy's and other extension modules leave Python's symbols to whoever is global in the process. Where the program has
 * opened this library locally, so is libpython; opening it once more changes that, and is never undone. */
static void make_python_global(void)
{
    Dl_info python;
    if (dladdr((const void *)(uintptr_t)&Py_IsInitialized, &python) != 0 && python.dli_fname != NULL)
        (void)dlopen(python.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
}

static int32_t check_paths(char *message)
{
    char executable[PATH_MAX], library[PATH_MAX];
    const char *paths[] = {resolve(SETTING_PYTHON, executable), resolve(SETTING_STDLIB, library)};
    for (size_t i = 0; i < COUNT(paths); i++)
        if (access(paths[i], R_OK) != 0)
            return refuse(message, S2F_BACKEND_MISSING,
                          "The Python " SETTING_PYTHON_VERSION " this library was built for is gone: there is no %s. "
                          "Install it there, or run: s2f-capi build",
                          paths[i]);
    return S2F_OK;
}

/* Isolated: no PYTHON* variable, no user's packages, no signal handlers, no change of the locale; text is UTF-8. `site`
 * is left to start.py, where its failures can be told. */
static PyStatus configure(PyConfig *config)
{
    char path[PATH_MAX];
    PyPreConfig before;
    PyStatus status;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    status = Py_PreInitialize(&before);
    if (PyStatus_Exception(status))
        return status;
    config->site_import = 0;
    return PyConfig_SetBytesString(config, &config->executable, resolve(SETTING_PYTHON, path));
}

static int32_t start_python(char *message)
{
    PyConfig config;
    PyStatus status;
    int32_t code = check_paths(message);
    if (code != S2F_OK)
        return code;
    PyConfig_InitIsolatedConfig(&config);
    status = configure(&config);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        refuse(broken, S2F_BACKEND_MISSING, "Python could not be started: %s. Reinstall it, or run: s2f-capi build",
               status.err_msg != NULL ? status.err_msg : "no reason given");
        return refuse(message, S2F_BACKEND_MISSING, "%s", broken);
    }
    is_ours = 1;
    PyEval_SaveThread(); /* from here on every thread asks for the GIL when it needs it */
    return S2F_OK;
}

static PyObject *load_native(PyObject *self, PyObject *nothing)
{
    (void)self;
    (void)nothing;
    return PyInit__s2f_native();
}

/* The function `start` of start.py, called. Returns its answer, or NULL with an exception set. */
static PyObject *call_start(void)
{
    static const char text[] = SETTING_START;
    static PyMethodDef loader = {"load_native", load_native, METH_NOARGS, NULL};
    char path[PATH_MAX];
    PyObject *answer = NULL, *names = PyDict_New(), *module = NULL;
    PyObject *code = Py_CompileString(text, "<libs2f start>", Py_file_input);
    PyObject *load = PyCFunction_New(&loader, NULL);
    if (names != NULL && code != NULL && load != NULL &&
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) == 0)
        module = PyEval_EvalCode(code, names, names);
    if (module != NULL)
        answer = PyObject_CallFunction(PyDict_GetItemString(names, "start"), "Oiss", load, is_ours, SETTING_VERSION,
                                       resolve(SETTING_FOLDER, path));
    Py_XDECREF(module);
    Py_XDECREF(load);
    Py_XDECREF(code);
    Py_XDECREF(names);
    return answer;
}

/* Load bridge.py and what it needs. May be tried again: a package that is missing can be installed meanwhile. */
static int32_t load_bridge(char *message)
{
    PyGILState_STATE state = PyGILState_Ensure();
    int code = S2F_UNEXPECTED;
    const char *text = "The part of libs2f that is written in Python could not be loaded.";
    PyObject *answer = call_start();
    if (answer == NULL || !PyArg_ParseTuple(answer, "is", &code, &text))
        PyErr_Clear();
    refuse(message, code, "%s", text);
    Py_XDECREF(answer);
    PyGILState_Release(state);
    return code;
}

static int32_t start_locked(char *message)
{
    int32_t code;
    if (ready != 0)
        return S2F_OK;
    if (broken[0] != '\0')
        return refuse(message, S2F_BACKEND_MISSING, "%s", broken);
    make_python_global();
    if (!Py_IsInitialized()) {
        code = start_python(message);
        if (code != S2F_OK)
            return code;
    } else if (strncmp(Py_GetVersion(), SETTING_PYTHON_VERSION ".", strlen(SETTING_PYTHON_VERSION ".")) != 0) {
        return refuse(message, S2F_BACKEND_MISSING,
                      "This library was built for Python " SETTING_PYTHON_VERSION ", but the process runs Python %.*s. "
                      "Run s2f-capi build with that Python.",
                      (int)strcspn(Py_GetVersion(), " "), Py_GetVersion());
    }
    code = load_bridge(message);
    if (code == S2F_OK)
        __atomic_store_n(&ready, getpid(), __ATOMIC_RELEASE);
    return code;
}

static int32_t check_process(pid_t process, char *message)
{
    if (process == 0 || process == getpid())
        return S2F_OK;
    return refuse(message, S2F_BACKEND_FAILED,
                  "This process was forked off after s2f_open, and Python and its threads do not exist here. Execute a "
                  "program of its own, or fork before s2f_open.");
}

int32_t start(char *message)
{
    PyThreadState *thread = NULL;
    pid_t none = 0;
    int32_t code;
    __atomic_compare_exchange_n(&starting, &none, getpid(), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    code = check_process(__atomic_load_n(&starting, __ATOMIC_ACQUIRE), message);
    if (code != S2F_OK || __atomic_load_n(&ready, __ATOMIC_ACQUIRE) != 0)
        return code != S2F_OK ? code : started(message);
    /* A thread of a program in Python may hold the GIL, which whoever holds the mutex will need. */
    if (Py_IsInitialized() && PyGILState_Check())
        thread = PyEval_SaveThread();
    pthread_mutex_lock(&mutex);
    code = start_locked(message);
    pthread_mutex_unlock(&mutex);
    if (thread != NULL)
        PyEval_RestoreThread(thread);
    return code;
}

int32_t started(char *message)
{
    int32_t code = check_process(__atomic_load_n(&starting, __ATOMIC_ACQUIRE), message);
    if (code == S2F_OK && __atomic_load_n(&ready, __ATOMIC_ACQUIRE) == 0)
        return refuse(message, S2F_INVALID_ARGUMENT, "Nothing has been opened yet.");
    if (code == S2F_OK && !Py_IsInitialized())
        return refuse(message, S2F_BACKEND_FAILED, "The program has ended its Python, which this library used.");
    return code;
}
