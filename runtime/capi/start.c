/* Finding and starting Python: once, when the first pipeline is opened, and never ending it. The environment has no say.
 * A process that runs Python already lends its own.
 *
 * This library is not linked with libpython: where that lies, and whether it is there at all, a wheel cannot know; and a
 * program must start without it, to be told what is missing.
 *
 * cffi's embedding mode is not used: its start writes to stderr and ends the process where something is missing, and it
 * waits for ever in a process whose Python (before 3.12) has looked up an attribute of a capsule. What it makes is an
 * ordinary extension module, which start.py loads. */
#define _GNU_SOURCE
#include <Python.h>

#include "library.h"
#include "settings.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INTERPRETER "python" SETTING_PYTHON_VERSION

#if PY_VERSION_HEX < 0x030D0000
#define PyThreadState_GetUnchecked _PyThreadState_UncheckedGet
#endif

#define FUNCTIONS(DO)                                                                                                  \
    DO(Py_IsInitialized)                                                                                               \
    DO(PyPreConfig_InitIsolatedConfig)                                                                                 \
    DO(Py_PreInitialize)                                                                                               \
    DO(PyConfig_InitIsolatedConfig)                                                                                    \
    DO(PyConfig_SetBytesString)                                                                                        \
    DO(PyConfig_Clear)                                                                                                 \
    DO(Py_InitializeFromConfig)                                                                                        \
    DO(PyStatus_Exception)                                                                                             \
    DO(PyEval_SaveThread)                                                                                              \
    DO(PyEval_RestoreThread)                                                                                           \
    DO(PyGILState_GetThisThreadState)                                                                                  \
    DO(PyThreadState_GetUnchecked)                                                                                     \
    DO(PyGILState_Ensure)                                                                                              \
    DO(PyGILState_Release)                                                                                             \
    DO(PyDict_New)                                                                                                     \
    DO(PyDict_GetItemString)                                                                                           \
    DO(PyRun_StringFlags)                                                                                              \
    DO(PyObject_CallFunction)                                                                                          \
    DO(PyArg_ParseTuple)                                                                                               \
    DO(PyErr_Clear)                                                                                                    \
    DO(Py_DecRef)
#define DECLARE(name) __typeof__(name) *name;

static struct {
    FUNCTIONS(DECLARE)
} python; /* what is used of it, once it is found */

bridge_functions bridge = {.stay_last = stay_last, .end = end};

static pthread_mutex_t finding = PTHREAD_MUTEX_INITIALIZER; /* whoever holds it never waits for Python's own lock */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pid_t starting; /* the process that has begun to start; 0 before */
static pid_t ready;    /* the process in which everything is loaded; 0 before */
static int is_found;   /* whether `python` is filled */
static int is_ours;    /* whether this library has started Python */
static char broken[BRIDGE_MESSAGE_BYTES]; /* why Python could not be started; there is no second try */
static char origin[PATH_MAX];             /* the folder of this library */

/* From a path to its folder; from one without a folder, nothing. */
static void ascend(char *path)
{
    char *slash = strrchr(path, '/');
    *(slash != NULL ? slash : path) = '\0';
}

static const char *join(char *path, const char *folder, const char *name)
{
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
        path[0] = '\0'; /* there is nothing of this name either */
    return path;
}

/* At load, because a relative path means nothing any more once the program has changed its working directory. */
__attribute__((constructor)) static void locate(void)
{
    Dl_info here;
    if (dladdr(&mutex, &here) == 0 || here.dli_fname == NULL || realpath(here.dli_fname, origin) == NULL)
        origin[0] = '\0';
    ascend(origin);
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

/* Where the interpreter is installed: what s2f-capi build wrote down, or the nearest folder above this library that has a
 * bin/python3.X, be it a link to nowhere: a virtual environment, a Python of its own. Packages of the user and of
 * Debian's Python have none above them but /usr. */
static void find_prefix(char *prefix)
{
    char path[PATH_MAX];
    struct stat entry;
    if (SETTING_PREFIX[0] != '\0') {
        strcpy(prefix, SETTING_PREFIX);
        return;
    }
    strcpy(prefix, origin);
    do
        ascend(prefix);
    while (prefix[0] != '\0' && lstat(join(path, prefix, "bin/" INTERPRETER), &entry) != 0);
    if (prefix[0] == '\0')
        strcpy(prefix, "/usr");
}

/* The folder of the interpreter that has the standard library: in a virtual environment, `home` of its pyvenv.cfg. */
static void find_home(const char *prefix, char *home)
{
    char line[PATH_MAX];
    FILE *file = fopen(join(line, prefix, "pyvenv.cfg"), "re");
    join(home, prefix, "bin");
    if (file == NULL)
        return;
    while (fgets(line, sizeof(line), file) != NULL)
        (void)sscanf(line, "home = %[^\r\n]", home); /* which has room for any line */
    fclose(file);
}

/* The interpreter, and the prefix of its standard library. Looked at first, since a Python that lacks them writes to
 * stderr. */
static int32_t find_installation(char *interpreter, char *base, char *message)
{
    char prefix[PATH_MAX], home[PATH_MAX], real[PATH_MAX], library[PATH_MAX];
    const char *paths[] = {interpreter, real, library};
    find_prefix(prefix);
    find_home(prefix, home);
    join(interpreter, prefix, "bin/" INTERPRETER);
    if (realpath(join(real, home, INTERPRETER), base) == NULL)
        base[0] = '\0';
    ascend(base);
    ascend(base);
    join(library, base, SETTING_STDLIB "/os.py");
    for (size_t i = 0; i < COUNT(paths); i++)
        if (access(paths[i], R_OK) != 0)
            return refuse(message, S2F_BACKEND_MISSING,
                          "The Python " SETTING_PYTHON_VERSION " this library was made for is gone: there is no %s. "
                          "Install it there, or install s2f-edge for another Python, or run: s2f-capi build",
                          paths[i]);
    return S2F_OK;
}

/* Open libpython for all of the process: extension modules leave Python's symbols to whoever is global. */
static int32_t open_python(char *message)
{
    const int global = RTLD_LAZY | RTLD_GLOBAL;
    char interpreter[PATH_MAX], base[PATH_MAX], path[PATH_MAX];
    int32_t code;
    if (dlopen(SETTING_LIBPYTHON, global | RTLD_NOLOAD) != NULL) /* the program has it, maybe for itself alone */
        return S2F_OK;
    code = find_installation(interpreter, base, message);
    if (code != S2F_OK || dlopen(join(path, base, "lib/" SETTING_LIBPYTHON), global) != NULL ||
        dlopen(SETTING_LIBPYTHON, global) != NULL)
        return code;
    return refuse(message, S2F_BACKEND_MISSING,
                  "The shared library of Python " SETTING_PYTHON_VERSION " is missing: there is no %s, and %s. On Debian, "
                  "Ubuntu and JetPack run: apt-get install libpython" SETTING_PYTHON_VERSION "; pyenv builds one with "
                  "PYTHON_CONFIGURE_OPTS=--enable-shared.",
                  path, dlerror());
}

/* Where this library was opened locally by a part of the program, so may be what that part is linked with. Opening it
 * once more changes that, and is never undone. */
static void make_global(const void *function)
{
    Dl_info found;
    if (dladdr(function, &found) != 0 && found.dli_fname != NULL)
        (void)dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);
}

/* A function of Python, copied to where a pointer to it is kept: ISO C knows no other way from an object to a function.
 * Returns whether there is one. */
static int look_up(const char *name, void *function)
{
    void *found = dlsym(RTLD_DEFAULT, name);
    memcpy(function, &found, sizeof(found));
    return found != NULL;
}

/* Fill `python`: of the Python the process has, or else of the one that belongs to this library. */
static int32_t find_python(char *message)
{
    __typeof__(Py_GetVersion) *version;
    int32_t code = look_up("Py_GetVersion", &version) ? S2F_OK : open_python(message);
    int whole = look_up("Py_GetVersion", &version);
    if (code != S2F_OK)
        return code;
    if (whole && strncmp(version(), SETTING_PYTHON_VERSION ".", strlen(SETTING_PYTHON_VERSION ".")) != 0)
        return refuse(message, S2F_BACKEND_MISSING,
                      "This library was built for Python " SETTING_PYTHON_VERSION ", but the process runs Python %.*s. "
                      "Install s2f-edge for that Python, or run s2f-capi build with it.",
                      (int)strcspn(version(), " "), version());
#define LOOK_UP_AS(name) whole &= look_up(#name, &python.name);
#define LOOK_UP(name) LOOK_UP_AS(name) /* the name it has in this release */
    FUNCTIONS(LOOK_UP)
    if (!whole)
        return refuse(message, S2F_BACKEND_MISSING, "The Python of this process lacks functions. Reinstall it.");
    make_global((const void *)(uintptr_t)version);
    return S2F_OK;
}

/* Isolated: no PYTHON* variable, no user's packages, no signal handlers, no change of the locale; text is UTF-8. `site`
 * is left to start.py, where its failures can be told. */
static PyStatus configure(PyConfig *config, const char *interpreter)
{
    PyPreConfig before;
    PyStatus status;
    python.PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    status = python.Py_PreInitialize(&before);
    if (python.PyStatus_Exception(status))
        return status;
    config->site_import = 0;
    return python.PyConfig_SetBytesString(config, &config->executable, interpreter);
}

static int32_t start_python(char *message)
{
    PyConfig config;
    PyStatus status;
    char interpreter[PATH_MAX], base[PATH_MAX];
    int32_t code = find_installation(interpreter, base, message);
    if (code != S2F_OK)
        return code;
    python.PyConfig_InitIsolatedConfig(&config);
    status = configure(&config, interpreter);
    if (!python.PyStatus_Exception(status))
        status = python.Py_InitializeFromConfig(&config);
    python.PyConfig_Clear(&config);
    if (python.PyStatus_Exception(status)) {
        refuse(broken, S2F_BACKEND_MISSING, "Python could not be started: %s. Reinstall it, or run: s2f-capi build",
               status.err_msg != NULL ? status.err_msg : "no reason given");
        return refuse(message, S2F_BACKEND_MISSING, "%s", broken);
    }
    is_ours = 1;
    python.PyEval_SaveThread(); /* from here on every thread asks for the GIL when it needs it */
    return S2F_OK;
}

/* The function `start` of start.py, called. Returns its answer, or NULL with an exception set. */
static PyObject *call_start(void)
{
    static const char text[] = SETTING_START;
    PyObject *answer = NULL, *names = python.PyDict_New();
    PyObject *module = names == NULL ? NULL : python.PyRun_StringFlags(text, Py_file_input, names, names, NULL);
    if (module != NULL)
        answer = python.PyObject_CallFunction(python.PyDict_GetItemString(names, "start"), "Kisyy",
                                              (unsigned long long)(uintptr_t)&bridge, is_ours, SETTING_VERSION,
                                              origin[0] != '\0' ? origin : "/", SETTING_FOLDER);
    python.Py_DecRef(module);
    python.Py_DecRef(names);
    return answer;
}

/* Load bridge.py and what it needs. May be tried again: a package that is missing can be installed meanwhile. */
static int32_t load_bridge(char *message)
{
    PyGILState_STATE state = python.PyGILState_Ensure();
    int code = S2F_UNEXPECTED;
    const char *text = "The part of libs2f that is written in Python could not be loaded.";
    PyObject *answer = call_start();
    if (answer == NULL || !python.PyArg_ParseTuple(answer, "is", &code, &text))
        python.PyErr_Clear();
    refuse(message, code, "%s", text);
    python.Py_DecRef(answer);
    python.PyGILState_Release(state);
    return code;
}

static int32_t start_locked(char *message)
{
    int32_t code;
    if (ready != 0)
        return S2F_OK;
    if (broken[0] != '\0')
        return refuse(message, S2F_BACKEND_MISSING, "%s", broken);
    code = python.Py_IsInitialized() ? S2F_OK : start_python(message);
    if (code == S2F_OK)
        code = load_bridge(message);
    if (code == S2F_OK)
        __atomic_store_n(&ready, getpid(), __ATOMIC_RELEASE);
    return code;
}

int32_t check_process(char *message)
{
    const pid_t process = __atomic_load_n(&starting, __ATOMIC_ACQUIRE);
    if (process == 0 || process == getpid())
        return S2F_OK;
    return refuse(message, S2F_BACKEND_FAILED,
                  "This process was forked off after s2f_open, and Python and its threads do not exist here. Execute a "
                  "program of its own, or fork before s2f_open.");
}

/* PyGILState_Check says yes everywhere once a program has made a second interpreter. */
void *let_go_of_python(void)
{
    PyThreadState *current = NULL;
    if (python.Py_IsInitialized != NULL && python.Py_IsInitialized())
        current = python.PyThreadState_GetUnchecked();
    return current != NULL && current == python.PyGILState_GetThisThreadState() ? python.PyEval_SaveThread() : NULL;
}

void take_python_again(void *thread)
{
    if (thread != NULL)
        python.PyEval_RestoreThread(thread);
}

int32_t start(char *message)
{
    void *thread;
    pid_t none = 0;
    int32_t code;
    __atomic_compare_exchange_n(&starting, &none, getpid(), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    code = check_process(message);
    if (code != S2F_OK || __atomic_load_n(&ready, __ATOMIC_ACQUIRE) != 0)
        return code != S2F_OK ? code : started(message);
    pthread_mutex_lock(&finding);
    code = is_found ? S2F_OK : find_python(message);
    is_found = code == S2F_OK;
    pthread_mutex_unlock(&finding);
    if (code != S2F_OK)
        return code;
    thread = let_go_of_python(); /* whoever holds the mutex will need it */
    pthread_mutex_lock(&mutex);
    code = start_locked(message);
    pthread_mutex_unlock(&mutex);
    take_python_again(thread);
    return code;
}

int32_t started(char *message)
{
    int32_t code = check_process(message);
    if (code == S2F_OK && __atomic_load_n(&ready, __ATOMIC_ACQUIRE) == 0)
        return refuse(message, S2F_INVALID_ARGUMENT, "Nothing has been opened yet.");
    if (code == S2F_OK && !python.Py_IsInitialized())
        return refuse(message, S2F_BACKEND_FAILED, "The program has ended its Python, which this library used.");
    return code;
}
