/* The functions of s2f.h: what only C can see is looked at here (NULL, handles, processes); everything else is asked of
 * bridge.py. */
#include "library.h"
#include "settings.h"

#include <stdlib.h>

#if UINTPTR_MAX < UINT64_MAX
#error "libs2f is written for 64-bit machines"
#endif

/* A handle is a tag over a number that bridge.py gave out. No pointer of a program has such upper bits. */
#define PIPELINE_TAG (UINT64_C(0x52F1) << 48)
#define STREAM_TAG (UINT64_C(0x52F2) << 48)
#define TAG_BITS (UINT64_C(0xFFFF) << 48)

#define MOST_SPEECHES 10000

static __thread char last_error[BRIDGE_MESSAGE_BYTES];

static int32_t invalid(const char *text)
{
    return refuse(last_error, S2F_INVALID_ARGUMENT, "%s", text);
}

typedef struct call {
    int64_t number; /* of the handle */
    int is_in;
} call;

/* The first line of every call with a handle. */
static int32_t enter(call *self, const void *handle, uint64_t tag)
{
    const uint64_t bits = (uint64_t)(uintptr_t)handle;
    const char *name = tag == PIPELINE_TAG ? "pipeline" : "stream";
    const char *maker = tag == PIPELINE_TAG ? "s2f_open" : "s2f_stream_open";
    int32_t code;
    last_error[0] = '\0';
    self->number = (int64_t)(bits & ~TAG_BITS);
    self->is_in = 0;
    if (handle == NULL)
        return refuse(last_error, S2F_INVALID_ARGUMENT, "The %s is NULL. Give one that %s made.", name, maker);
    if ((bits & TAG_BITS) != tag)
        return refuse(last_error, S2F_INVALID_ARGUMENT, "The %s is not one that %s made.", name, maker);
    code = started(last_error);
    if (code == S2F_OK)
        code = come_in(last_error);
    self->is_in = code == S2F_OK;
    return code;
}

/* The last line: a text for each failure, none after success, whatever a callback has called meanwhile. */
static int32_t leave(const call *self, int32_t code)
{
    if (self->is_in)
        go_out();
    if (code == S2F_OK)
        last_error[0] = '\0';
    else if (last_error[0] == '\0')
        refuse(last_error, code, "%s", s2f_strerror(code));
    return code;
}

static void *handle_of(int64_t number, uint64_t tag)
{
    return (void *)(uintptr_t)(tag | (uint64_t)number);
}

static int32_t check_room(const bridge_room *image, const s2f_result *result)
{
    if (image->bytes == NULL && image->size > 0)
        return invalid("The image is NULL, but its size is not 0.");
    if (image->bytes == NULL && result == NULL)
        return invalid("Image and result are both NULL. To ask for the size, give a result.");
    return S2F_OK;
}

/* `drawn`: whether the speech will be looked at, which a query for the size does not do. */
static int32_t check_speech(const bridge_speech *speech, int drawn)
{
    if (speech->count == 0 || speech->count > MOST_SPEECHES)
        return refuse(last_error, S2F_INVALID_ARGUMENT, "count must be in 1..%d, not %zu.", MOST_SPEECHES,
                      speech->count);
    if (speech->path != NULL || !drawn)
        return S2F_OK;
    if (speech->pcm == NULL || speech->frames == NULL)
        return invalid("The speech is NULL.");
    for (size_t i = 0; i < speech->count; i++)
        if (speech->pcm[i] == NULL)
            return refuse(last_error, S2F_INVALID_ARGUMENT, "Speech number %zu is NULL.", i);
    return S2F_OK;
}

uint32_t s2f_abi_version(void)
{
    return S2F_ABI_VERSION;
}

const char *s2f_version(void)
{
    return SETTING_VERSION;
}

const char *s2f_strerror(int32_t code)
{
    static const struct {
        int32_t code;
        const char *text;
    } texts[] = SETTING_CODES;
    for (size_t i = 0; i < COUNT(texts); i++)
        if (texts[i].code == code)
            return texts[i].text;
    return "An error that this version of the library does not know.";
}

const char *s2f_last_error(void)
{
    return last_error;
}

int32_t s2f_open(const char *bundle, const s2f_options *options, s2f_pipeline **pipeline)
{
    s2f_options ours;
    sigset_t signals;
    call self = {0, 0};
    int32_t code;
    last_error[0] = '\0';
    if (pipeline == NULL)
        return invalid("The place for the pipeline is NULL.");
    *pipeline = NULL;
    code = take_options(&ours, options, last_error);
    if (code == S2F_OK)
        code = check_process(last_error); /* in a child the door may be locked for ever */
    if (code == S2F_OK)
        code = come_in(last_error);
    if (code != S2F_OK)
        return code;
    self.is_in = 1;
    hold_signals(&signals);
    code = start(last_error);
    if (code == S2F_OK)
        code = bridge.open(bundle, &ours, &self.number, last_error);
    release_signals(&signals);
    if (code == S2F_OK)
        *pipeline = handle_of(self.number, PIPELINE_TAG);
    return leave(&self, code);
}

int32_t s2f_info(s2f_pipeline *pipeline, s2f_result *result)
{
    s2f_result ours;
    call self;
    int32_t code = enter(&self, pipeline, PIPELINE_TAG);
    if (code == S2F_OK && result == NULL)
        code = invalid("The result is NULL.");
    if (code == S2F_OK)
        code = take_result(&ours, result, last_error);
    if (code == S2F_OK)
        code = bridge.info(self.number, &ours, last_error);
    if (code == S2F_OK)
        give_result(result, &ours);
    return leave(&self, code);
}

/* The element of an array whose elements are as large as the caller's version of the structure. */
static s2f_result *result_at(s2f_result *results, size_t index)
{
    return results == NULL ? NULL : (s2f_result *)(void *)((char *)results + index * results->struct_size);
}

/* Draw into buffers that have been checked; `ours` has room for speech->count results. */
static int32_t draw(int64_t number, const bridge_speech *speech, const s2f_request *request, const bridge_room *images,
                    s2f_result *results, s2f_result *ours)
{
    int32_t code = S2F_OK;
    for (size_t i = 0; i < speech->count && code == S2F_OK; i++) {
        code = take_result(&ours[i], result_at(results, i), last_error);
        if (code == S2F_OK && results != NULL && result_at(results, i)->struct_size != results->struct_size)
            code = invalid("The results of a batch differ in struct_size.");
    }
    if (code == S2F_OK)
        code = bridge.generate(number, speech, request, images, ours, last_error);
    for (size_t i = 0; i < speech->count && (code == S2F_OK || code == S2F_BUFFER_TOO_SMALL); i++)
        give_result(result_at(results, i), &ours[i]);
    return code;
}

static int32_t generate(s2f_pipeline *pipeline, const bridge_speech *speech, const s2f_request *request,
                        uint8_t *images, size_t image_bytes, s2f_result *results)
{
    const bridge_room room = {images, image_bytes};
    s2f_request ours;
    s2f_result *all;
    call self;
    int32_t code = enter(&self, pipeline, PIPELINE_TAG);
    if (code == S2F_OK)
        code = check_room(&room, results);
    if (code == S2F_OK)
        code = check_speech(speech, images != NULL);
    if (code == S2F_OK)
        code = take_request(&ours, request, last_error);
    if (code != S2F_OK)
        return leave(&self, code);
    all = calloc(speech->count, sizeof(*all));
    if (all == NULL)
        return leave(&self, refuse(last_error, S2F_UNEXPECTED, "There is no memory for %zu results.", speech->count));
    code = draw(self.number, speech, &ours, &room, results, all);
    free(all);
    return leave(&self, code);
}

int32_t s2f_generate(s2f_pipeline *pipeline, const float *pcm, size_t frames, int32_t sample_rate, int32_t channels,
                     const s2f_request *request, uint8_t *image, size_t image_bytes, s2f_result *result)
{
    const void *samples = pcm;
    const bridge_speech speech = {NULL, &samples, &frames, 1, 1, sample_rate, channels};
    return generate(pipeline, &speech, request, image, image_bytes, result);
}

int32_t s2f_generate_i16(s2f_pipeline *pipeline, const int16_t *pcm, size_t frames, int32_t sample_rate,
                         int32_t channels, const s2f_request *request, uint8_t *image, size_t image_bytes,
                         s2f_result *result)
{
    const void *samples = pcm;
    const bridge_speech speech = {NULL, &samples, &frames, 1, 0, sample_rate, channels};
    return generate(pipeline, &speech, request, image, image_bytes, result);
}

int32_t s2f_generate_file(s2f_pipeline *pipeline, const char *path, const s2f_request *request, uint8_t *image,
                          size_t image_bytes, s2f_result *result)
{
    const bridge_speech speech = {path, NULL, NULL, 1, 0, 0, 0};
    return generate(pipeline, &speech, request, image, image_bytes, result);
}

int32_t s2f_generate_batch(s2f_pipeline *pipeline, const float *const *pcm, const size_t *frames, size_t count,
                           int32_t sample_rate, int32_t channels, const s2f_request *request, uint8_t *images,
                           size_t image_bytes, s2f_result *results)
{
    const bridge_speech speech = {NULL, (const void *const *)pcm, frames, count, 1, sample_rate, channels};
    return generate(pipeline, &speech, request, images, image_bytes, results);
}

int32_t s2f_encode_png(s2f_pipeline *pipeline, const uint8_t *image, const s2f_result *result, uint8_t *png,
                       size_t png_bytes, size_t *needed)
{
    const bridge_room room = {png, png_bytes};
    s2f_result ours;
    call self;
    int32_t code = enter(&self, pipeline, PIPELINE_TAG);
    if (code == S2F_OK && (image == NULL || result == NULL || needed == NULL))
        code = invalid("The image, its result or the place for the size needed is NULL.");
    if (code == S2F_OK && png == NULL && png_bytes > 0)
        code = invalid("The buffer for the PNG is NULL, but its size is not 0.");
    if (code == S2F_OK)
        code = take_result(&ours, result, last_error);
    if (code == S2F_OK)
        code = bridge.encode_png(self.number, image, &ours, &room, needed, last_error);
    return leave(&self, code);
}

int32_t s2f_close(s2f_pipeline *pipeline)
{
    call self;
    int32_t code = enter(&self, pipeline, PIPELINE_TAG);
    if (code == S2F_OK)
        code = bridge.close(self.number, last_error);
    return leave(&self, code);
}

int32_t s2f_stream_open(s2f_pipeline *pipeline, const s2f_stream_options *options, s2f_stream **stream)
{
    s2f_stream_options ours;
    sigset_t signals;
    int64_t made = 0;
    call self;
    int32_t code = enter(&self, pipeline, PIPELINE_TAG);
    if (code == S2F_OK && stream == NULL)
        code = invalid("The place for the stream is NULL.");
    if (stream != NULL)
        *stream = NULL;
    if (code == S2F_OK)
        code = take_stream_options(&ours, options, last_error);
    if (code != S2F_OK)
        return leave(&self, code);
    hold_signals(&signals);
    code = bridge.stream_open(self.number, &ours, &made, last_error);
    release_signals(&signals);
    if (code == S2F_OK)
        *stream = handle_of(made, STREAM_TAG);
    return leave(&self, code);
}

static int32_t push(s2f_stream *stream, const void *pcm, size_t frames, int32_t is_float)
{
    call self;
    int32_t code = enter(&self, stream, STREAM_TAG);
    if (code == S2F_OK && pcm == NULL && frames > 0)
        code = invalid("The samples are NULL.");
    if (code == S2F_OK)
        code = bridge.stream_push(self.number, pcm, frames, is_float, last_error);
    return leave(&self, code);
}

int32_t s2f_stream_push(s2f_stream *stream, const float *pcm, size_t frames)
{
    return push(stream, pcm, frames, 1);
}

int32_t s2f_stream_push_i16(s2f_stream *stream, const int16_t *pcm, size_t frames)
{
    return push(stream, pcm, frames, 0);
}

int32_t s2f_stream_poll(s2f_stream *stream, uint8_t *image, size_t image_bytes, s2f_result *result, int32_t *fresh)
{
    const bridge_room room = {image, image_bytes};
    s2f_result ours;
    int32_t is_fresh = 0;
    call self;
    int32_t code = enter(&self, stream, STREAM_TAG);
    if (code == S2F_OK && fresh == NULL)
        code = invalid("The place for fresh is NULL.");
    if (code == S2F_OK)
        code = check_room(&room, result);
    if (code == S2F_OK)
        code = take_result(&ours, result, last_error);
    if (code == S2F_OK)
        code = bridge.stream_poll(self.number, &room, &ours, &is_fresh, last_error);
    if (code == S2F_BUFFER_TOO_SMALL || (code == S2F_OK && (is_fresh || image == NULL)))
        give_result(result, &ours);
    if (code == S2F_OK)
        *fresh = is_fresh;
    return leave(&self, code);
}

int32_t s2f_stream_info(s2f_stream *stream, s2f_stream_state *state)
{
    s2f_stream_state ours;
    call self;
    int32_t code = enter(&self, stream, STREAM_TAG);
    if (code == S2F_OK && state == NULL)
        code = invalid("The state is NULL.");
    if (code == S2F_OK)
        code = take_stream_state(&ours, state, last_error);
    if (code == S2F_OK)
        code = bridge.stream_info(self.number, &ours, last_error);
    if (code == S2F_OK)
        give_stream_state(state, &ours);
    return leave(&self, code);
}

int32_t s2f_stream_finish(s2f_stream *stream, uint32_t timeout_ms, uint8_t *image, size_t image_bytes,
                          s2f_result *result)
{
    const bridge_room room = {image, image_bytes};
    s2f_result ours;
    call self;
    int32_t code = enter(&self, stream, STREAM_TAG);
    if (code == S2F_OK && image == NULL)
        code = invalid("The image is NULL.");
    if (code == S2F_OK)
        code = take_result(&ours, result, last_error);
    if (code == S2F_OK)
        code = bridge.stream_finish(self.number, timeout_ms, &room, &ours, last_error);
    if (code == S2F_OK || code == S2F_BUFFER_TOO_SMALL)
        give_result(result, &ours);
    return leave(&self, code);
}

int32_t s2f_stream_close(s2f_stream *stream)
{
    call self;
    int32_t code = enter(&self, stream, STREAM_TAG);
    if (code == S2F_OK)
        code = bridge.stream_close(self.number, last_error);
    return leave(&self, code);
}
