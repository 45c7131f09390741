/* Between library.c and bridge.py; no part of the interface. build.py reads the declarations below for cffi, which makes
 * of them a module for Python, _s2f_native.so beside libs2f.so. */
#ifndef S2F_BRIDGE_H
#define S2F_BRIDGE_H

#include "s2f.h"

#define BRIDGE_MESSAGE_BYTES 1024 /* the terminating zero included */

/* Either a path, or `count` arrays pcm[i] of frames[i] x channels samples, float or int16_t. */
typedef struct bridge_speech {
    const char *path;
    const void *const *pcm;
    const size_t *frames;
    size_t count;
    int32_t is_float;
    int32_t sample_rate;
    int32_t channels;
} bridge_speech;

/* A buffer of the caller; bytes NULL asks for the size it must have. */
typedef struct bridge_room {
    uint8_t *bytes;
    size_t size;
} bridge_room;

/* Functions with a `message` are implemented in bridge.py, which puts them here. They return a code of s2f_code and,
 * unless that is S2F_OK, have written a text of at most BRIDGE_MESSAGE_BYTES to `message`. Structures are whole: what the
 * caller's lacked has its default. The others are implemented in C, see library.h. */
typedef struct bridge_functions {
    int32_t (*open)(const char *bundle, const s2f_options *options, int64_t *pipeline, char *message);
    int32_t (*info)(int64_t pipeline, s2f_result *result, char *message);
    int32_t (*generate)(int64_t pipeline, const bridge_speech *speech, const s2f_request *request,
                        const bridge_room *images, s2f_result *results, char *message);
    int32_t (*encode_png)(int64_t pipeline, const uint8_t *image, const s2f_result *result, const bridge_room *png,
                          size_t *needed, char *message);
    int32_t (*close)(int64_t pipeline, char *message);
    int32_t (*stream_open)(int64_t pipeline, const s2f_stream_options *options, int64_t *stream, char *message);
    int32_t (*stream_push)(int64_t stream, const void *pcm, size_t frames, int32_t is_float, char *message);
    int32_t (*stream_poll)(int64_t stream, const bridge_room *image, s2f_result *result, int32_t *fresh, char *message);
    int32_t (*stream_info)(int64_t stream, s2f_stream_state *state, char *message);
    int32_t (*stream_finish)(int64_t stream, uint32_t timeout_ms, const bridge_room *image, s2f_result *result,
                             char *message);
    int32_t (*stream_close)(int64_t stream, char *message);
    int32_t (*give_up)(uint64_t thread, char *message); /* all that is drawn, but by a call of this thread */
    void (*stay_last)(void);
    void (*end)(void);
} bridge_functions;

#endif
