/* Structures of callers that were compiled against another version of s2f.h: fewer fields, or more. */
#include "library.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LARGEST 4096 /* bytes; a size beyond is memory nobody has initialised */

#define END(type, field) (offsetof(type, field) + sizeof(((type *)0)->field))

/* Where the fields end, in order: a structure may be cut after any of them, and never within one. */
static const size_t options_ends[] = {
    END(s2f_options, struct_size), END(s2f_options, device),   END(s2f_options, threads),
    END(s2f_options, log),         END(s2f_options, log_user), END(s2f_options, log_level),
    END(s2f_options, precision),
};
static const size_t request_ends[] = {
    END(s2f_request, struct_size), END(s2f_request, seed),         END(s2f_request, steps),
    END(s2f_request, guidance),    END(s2f_request, prior_weight), END(s2f_request, window),
    END(s2f_request, timeout_ms),  END(s2f_request, progress),     END(s2f_request, progress_user),
};
static const size_t result_ends[] = {
    END(s2f_result, struct_size), END(s2f_result, width),        END(s2f_result, height),
    END(s2f_result, bytes_needed), END(s2f_result, seed),        END(s2f_result, steps),
    END(s2f_result, guidance),    END(s2f_result, prior_weight), END(s2f_result, audio_ms),
    END(s2f_result, graphs_ms),   END(s2f_result, total_ms),
};
static const size_t stream_options_ends[] = {
    END(s2f_stream_options, struct_size),  END(s2f_stream_options, sample_rate), END(s2f_stream_options, channels),
    END(s2f_stream_options, seed),         END(s2f_stream_options, steps),       END(s2f_stream_options, guidance),
    END(s2f_stream_options, prior_weight), END(s2f_stream_options, max_backlog_s),
    END(s2f_stream_options, vad),
};
static const size_t stream_state_ends[] = {
    END(s2f_stream_state, struct_size), END(s2f_stream_state, heard_s),          END(s2f_stream_state, speech_s),
    END(s2f_stream_state, dropped_s),   END(s2f_stream_state, portrait_s),       END(s2f_stream_state, first_portrait_s),
    END(s2f_stream_state, first_portrait_ms),
};

int32_t refuse(char *message, int32_t code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(message, BRIDGE_MESSAGE_BYTES, format, values);
    va_end(values);
    return code;
}

/* Bytes of the fields that caller and library both know; 0 where the caller's struct_size cannot be one: every structure
 * here begins with a size_t, so its size is a multiple of that. */
static size_t known_bytes(const void *given, const size_t *ends, size_t count)
{
    size_t size, known = 0;
    memcpy(&size, given, sizeof(size));
    if (size > LARGEST || size % sizeof(size))
        return 0;
    for (size_t i = 0; i < count && ends[i] <= size; i++)
        known = ends[i];
    return known;
}

static int32_t take(const char *name, void *ours, const void *given, const size_t *ends, size_t count, char *message)
{
    size_t known;
    if (given == NULL)
        return S2F_OK;
    known = known_bytes(given, ends, count);
    if (known == 0)
        return refuse(message, S2F_INVALID_ARGUMENT, "The struct_size of %s cannot be one. Call %s_init first.", name,
                      name);
    memcpy(ours, given, known);
    return S2F_OK;
}

int32_t take_options(s2f_options *ours, const s2f_options *given, char *message)
{
    s2f_options_init(ours);
    return take("s2f_options", ours, given, options_ends, COUNT(options_ends), message);
}

int32_t take_request(s2f_request *ours, const s2f_request *given, char *message)
{
    s2f_request_init(ours);
    return take("s2f_request", ours, given, request_ends, COUNT(request_ends), message);
}

int32_t take_result(s2f_result *ours, const s2f_result *given, char *message)
{
    s2f_result_init(ours);
    return take("s2f_result", ours, given, result_ends, COUNT(result_ends), message);
}

int32_t take_stream_options(s2f_stream_options *ours, const s2f_stream_options *given, char *message)
{
    s2f_stream_options_init(ours);
    return take("s2f_stream_options", ours, given, stream_options_ends, COUNT(stream_options_ends), message);
}

int32_t take_stream_state(s2f_stream_state *ours, const s2f_stream_state *given, char *message)
{
    s2f_stream_state_init(ours);
    return take("s2f_stream_state", ours, given, stream_state_ends, COUNT(stream_state_ends), message);
}

static void give(void *theirs, const void *ours, const size_t *ends, size_t count)
{
    const size_t first = ends[0]; /* struct_size itself stays the caller's */
    size_t known;
    if (theirs == NULL)
        return;
    known = known_bytes(theirs, ends, count);
    if (known > first)
        memcpy((char *)theirs + first, (const char *)ours + first, known - first);
}

void give_result(s2f_result *theirs, const s2f_result *ours)
{
    give(theirs, ours, result_ends, COUNT(result_ends));
}

void give_stream_state(s2f_stream_state *theirs, const s2f_stream_state *ours)
{
    give(theirs, ours, stream_state_ends, COUNT(stream_state_ends));
}

void s2f_options_init(s2f_options *options)
{
    if (options == NULL)
        return;
    memset(options, 0, sizeof(*options));
    options->struct_size = sizeof(*options);
}

void s2f_request_init(s2f_request *request)
{
    if (request == NULL)
        return;
    memset(request, 0, sizeof(*request));
    request->struct_size = sizeof(*request);
    request->guidance = NAN;
    request->prior_weight = NAN;
}

void s2f_result_init(s2f_result *result)
{
    if (result == NULL)
        return;
    memset(result, 0, sizeof(*result));
    result->struct_size = sizeof(*result);
}

void s2f_stream_options_init(s2f_stream_options *options)
{
    if (options == NULL)
        return;
    memset(options, 0, sizeof(*options));
    options->struct_size = sizeof(*options);
    options->guidance = NAN;
    options->prior_weight = NAN;
}

void s2f_stream_state_init(s2f_stream_state *state)
{
    if (state == NULL)
        return;
    memset(state, 0, sizeof(*state));
    state->struct_size = sizeof(*state);
}
