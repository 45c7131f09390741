/* structs: sizes and offsets of the structures, one "structure field offset size" per line.
 * structs BUNDLE VOICE: callers compiled against a smaller and a larger header. */
#include "host.h"

#define SHOW(type, field) printf(#type " " #field " %zu %zu\n", offsetof(type, field), sizeof(((type *)0)->field))
#define WHOLE(type) printf(#type " - 0 %zu\n", sizeof(type))
#define UNTIL(type, field) (offsetof(type, field) + sizeof(((type *)0)->field))

static void show(void)
{
    WHOLE(s2f_options), SHOW(s2f_options, struct_size), SHOW(s2f_options, device), SHOW(s2f_options, threads);
    SHOW(s2f_options, log), SHOW(s2f_options, log_user), SHOW(s2f_options, log_level),
    SHOW(s2f_options, precision);
    WHOLE(s2f_request), SHOW(s2f_request, struct_size), SHOW(s2f_request, seed), SHOW(s2f_request, steps);
    SHOW(s2f_request, guidance), SHOW(s2f_request, prior_weight), SHOW(s2f_request, window);
    SHOW(s2f_request, timeout_ms), SHOW(s2f_request, progress), SHOW(s2f_request, progress_user);
    WHOLE(s2f_result), SHOW(s2f_result, struct_size), SHOW(s2f_result, width), SHOW(s2f_result, height);
    SHOW(s2f_result, bytes_needed), SHOW(s2f_result, seed), SHOW(s2f_result, steps), SHOW(s2f_result, guidance);
    SHOW(s2f_result, prior_weight), SHOW(s2f_result, audio_ms), SHOW(s2f_result, graphs_ms);
    SHOW(s2f_result, total_ms);
    WHOLE(s2f_stream_options), SHOW(s2f_stream_options, struct_size), SHOW(s2f_stream_options, sample_rate);
    SHOW(s2f_stream_options, channels), SHOW(s2f_stream_options, seed), SHOW(s2f_stream_options, steps);
    SHOW(s2f_stream_options, guidance), SHOW(s2f_stream_options, prior_weight);
    SHOW(s2f_stream_options, max_backlog_s), SHOW(s2f_stream_options, vad);
    WHOLE(s2f_stream_state), SHOW(s2f_stream_state, struct_size), SHOW(s2f_stream_state, heard_s);
    SHOW(s2f_stream_state, speech_s), SHOW(s2f_stream_state, dropped_s), SHOW(s2f_stream_state, portrait_s);
    SHOW(s2f_stream_state, first_portrait_s), SHOW(s2f_stream_state, first_portrait_ms);
}

/* What a program of a later release would hand over. */
typedef struct later {
    union {
        s2f_options options;
        s2f_request request;
        s2f_result result;
    } now;
    unsigned char more[200];
} later;

static void fill(later *all, size_t known)
{
    memset((unsigned char *)all + known, 0xA5, sizeof(*all) - known);
}

static int more_is_untouched(const later *all, size_t known)
{
    for (size_t i = known; i < sizeof(*all); i++)
        if (((const unsigned char *)all)[i] != 0xA5)
            return 0;
    return 1;
}

static s2f_pipeline *open_with(const char *bundle, size_t size)
{
    s2f_pipeline *pipeline;
    later options;
    s2f_options_init(&options.now.options);
    options.now.options.device = "cpu";
    options.now.options.threads = 1;
    fill(&options, size < sizeof(s2f_options) ? size : sizeof(s2f_options)); /* beyond its end nothing may be read */
    options.now.options.struct_size = size;
    EXPECT(S2F_OK, s2f_open(bundle, &options.now.options, &pipeline));
    return pipeline;
}

static void requests(s2f_pipeline *pipeline, voice speech)
{
    const size_t sizes[] = {UNTIL(s2f_request, seed), UNTIL(s2f_request, guidance), offsetof(s2f_request, window),
                            sizeof(s2f_request), sizeof(later)};
    uint8_t image[32 * 32 * 3];
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        later request;
        s2f_result result;
        s2f_request_init(&request.now.request);
        s2f_result_init(&result);
        request.now.request.seed = 11;
        request.now.request.steps = 2;
        fill(&request, sizes[i] < sizeof(s2f_request) ? sizes[i] : sizeof(s2f_request));
        request.now.request.struct_size = sizes[i];
        EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request.now.request, image,
                                    sizeof(image), &result));
        CHECK(result.seed == 11 && result.steps == (sizes[i] < UNTIL(s2f_request, steps) ? 4 : 2));
    }
}

static void results(s2f_pipeline *pipeline, voice speech)
{
    const size_t sizes[] = {sizeof(size_t), UNTIL(s2f_result, height), UNTIL(s2f_result, bytes_needed),
                            UNTIL(s2f_result, seed), UNTIL(s2f_result, guidance), sizeof(s2f_result), sizeof(later)};
    uint8_t image[32 * 32 * 3];
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        const size_t size = sizes[i];
        later result;
        fill(&result, 0);
        result.now.result.struct_size = size;
        EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, image, sizeof(image),
                                    &result.now.result));
        CHECK(result.now.result.struct_size == size);
        CHECK(size < UNTIL(s2f_result, width) || result.now.result.width == 32);
        CHECK(size < UNTIL(s2f_result, steps) || result.now.result.steps == 4);
        CHECK(size < sizeof(s2f_result) || result.now.result.total_ms > 0);
        CHECK(more_is_untouched(&result, size < sizeof(s2f_result) ? size : sizeof(s2f_result)));
    }
}

/* An older program's array of results has shorter steps. */
static void older_batch(s2f_pipeline *pipeline, voice speech)
{
    enum { STEP = UNTIL(s2f_result, guidance), PORTRAITS = 3 };
    static uint64_t memory[(STEP * PORTRAITS + 64) / 8];
    static uint8_t images[PORTRAITS * 32 * 32 * 3];
    const float *pcm[PORTRAITS] = {speech.pcm, speech.pcm, speech.pcm};
    const size_t frames[PORTRAITS] = {speech.frames, speech.frames, speech.frames}, step = STEP;
    s2f_result *first = (s2f_result *)(void *)memory;
    memset(memory, 0xA5, sizeof(memory));
    for (size_t i = 0; i < PORTRAITS; i++)
        memcpy((char *)memory + i * step, &step, sizeof(step));
    EXPECT(S2F_OK, s2f_generate_batch(pipeline, pcm, frames, PORTRAITS, RATE, 1, NULL, images, sizeof(images), first));
    for (size_t i = 0; i < PORTRAITS; i++) {
        int64_t seed;
        memcpy(&seed, (char *)memory + i * step + offsetof(s2f_result, seed), sizeof(seed));
        CHECK(seed == (int64_t)i);
    }
    CHECK(((unsigned char *)memory)[STEP * PORTRAITS] == 0xA5);
    memset((char *)memory + step, 0xEE, sizeof(step));
    EXPECT(S2F_INVALID_ARGUMENT,
           s2f_generate_batch(pipeline, pcm, frames, PORTRAITS, RATE, 1, NULL, images, sizeof(images), first));
}

int main(int count, char **arguments)
{
    voice speech;
    s2f_pipeline *pipeline;
    show();
    if (count != 3)
        return 0;
    speech = read_voice(arguments[2]);
    EXPECT(S2F_OK, s2f_close(open_with(arguments[1], sizeof(size_t))));
    EXPECT(S2F_OK, s2f_close(open_with(arguments[1], UNTIL(s2f_options, device))));
    EXPECT(S2F_OK, s2f_close(open_with(arguments[1], UNTIL(s2f_options, threads) + 4)));
    pipeline = open_with(arguments[1], sizeof(later));
    requests(pipeline, speech);
    results(pipeline, speech);
    older_batch(pipeline, speech);
    EXPECT(S2F_OK, s2f_close(pipeline));
    return failures != 0;
}
