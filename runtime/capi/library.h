/* Between the C files of libs2f; no part of the interface. A function that returns a code has then written a text to
 * `message`, a buffer of BRIDGE_MESSAGE_BYTES, unless the code is S2F_OK. */
#ifndef S2F_LIBRARY_H
#define S2F_LIBRARY_H

#include "bridge.h"

#include <signal.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Write a text, cut to the buffer. Returns `code`. (structs.c) */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
int32_t refuse(char *message, int32_t code, const char *format, ...);

/* A caller's structure, of whatever size, over defaults; NULL is all defaults. (structs.c) */
int32_t take_options(s2f_options *ours, const s2f_options *given, char *message);
int32_t take_request(s2f_request *ours, const s2f_request *given, char *message);
int32_t take_result(s2f_result *ours, const s2f_result *given, char *message);
int32_t take_stream_options(s2f_stream_options *ours, const s2f_stream_options *given, char *message);
int32_t take_stream_state(s2f_stream_state *ours, const s2f_stream_state *given, char *message);

/* Write to the caller's structure, of whatever size; NULL is not wanted. (structs.c) */
void give_result(s2f_result *theirs, const s2f_result *ours);
void give_stream_state(s2f_stream_state *theirs, const s2f_stream_state *ours);

/* What Python implements is filled in by `start`. (start.c) */
extern bridge_functions bridge;

/* Make the functions of bridge.h callable: start Python where the process has none, and load bridge.py. Done once; any
 * number of threads may ask at the same time. (start.c) */
int32_t start(char *message);

/* S2F_OK unless this is a forked child of the process in which `start` was called. Never waits. (start.c) */
int32_t check_process(char *message);

/* S2F_OK once `start` has succeeded in this very process. Never waits. (start.c) */
int32_t started(char *message);

/* A call begins, unless the process is ending, and ends. (end.c) */
int32_t come_in(char *message);
void go_out(void);

/* The end of the process: see the file. Once. (end.c) */
void end(void);

/* Have `end` called at exit, before whatever has registered an exit handler until now: they run in reverse order. (end.c) */
void stay_last(void);

/* If this thread holds Python's lock, let go of it; and take it again with what that gave. (start.c) */
void *let_go_of_python(void);
void take_python_again(void *thread);

/* Block the signals a program may want to handle, for threads that are made meanwhile; and restore. (start.c) */
void hold_signals(sigset_t *before);
void release_signals(const sigset_t *before);

#endif
