/* calls BUNDLE FOLDER: every way to draw, from FOLDER/voice.f32, voice.i16, stereo.f32 and voice.wav; the images go to
 * FOLDER. */
#include "host.h"

static const char *folder;
static s2f_pipeline *pipeline;
static s2f_request request;
static s2f_result result;
static uint8_t *image;
static size_t size;

static void keep(const char *name, int32_t code)
{
    EXPECT(S2F_OK, code);
    CHECK(result.graphs_ms > 0 && result.total_ms >= result.audio_ms + result.graphs_ms);
    write_file(folder, name, image, size);
    memset(image, 0, size);
}

static const char *in_folder(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void batch(voice speech)
{
    const float *pcm[3] = {speech.pcm, speech.pcm + RATE, speech.pcm};
    const size_t frames[3] = {speech.frames, speech.frames - RATE, RATE};
    uint8_t *images = malloc(3 * size);
    s2f_result results[3];
    for (int i = 0; i < 3; i++)
        s2f_result_init(&results[i]);
    EXPECT(S2F_OK, s2f_generate_batch(pipeline, NULL, NULL, 3, RATE, 1, NULL, NULL, 0, results));
    CHECK(results[0].bytes_needed == 3 * size && results[2].bytes_needed == 3 * size);
    EXPECT(S2F_BUFFER_TOO_SMALL,
           s2f_generate_batch(pipeline, pcm, frames, 3, RATE, 1, &request, images, 3 * size - 1, results));
    EXPECT(S2F_OK, s2f_generate_batch(pipeline, pcm, frames, 3, RATE, 1, &request, images, 3 * size, results));
    CHECK(results[0].seed == 7 && results[1].seed == 8 && results[2].seed == 9);
    write_file(folder, "batch.rgb", images, 3 * size);
    free(images);
}

static void png(void)
{
    uint8_t *file;
    size_t needed = 0, again = 0;
    EXPECT(S2F_OK, s2f_encode_png(pipeline, image, &result, NULL, 0, &needed));
    file = malloc(needed);
    EXPECT(S2F_BUFFER_TOO_SMALL, s2f_encode_png(pipeline, image, &result, file, needed - 1, &again));
    CHECK(needed > 100 && again == needed && needed <= result.bytes_needed + 65536);
    EXPECT(S2F_OK, s2f_encode_png(pipeline, image, &result, file, needed, &again));
    write_file(folder, "portrait.png", file, needed);
    free(file);
}

static void draw_all(voice speech, voice stereo, voice words)
{
    keep("float.rgb", s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, size, &result));
    keep("short.rgb", s2f_generate_i16(pipeline, (const int16_t *)(const void *)words.pcm, words.frames * 2, RATE, 1,
                                       &request, image, size, &result));
    keep("stereo.rgb",
         s2f_generate(pipeline, stereo.pcm, stereo.frames / 2, 22050, 2, &request, image, size, &result));
    keep("file.rgb", s2f_generate_file(pipeline, in_folder("voice.wav"), &request, image, size, &result));
    keep("plain.rgb", s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, image, size, &result));
    request.steps = 2;
    request.guidance = 1.3F;
    request.window = "loudest";
    keep("options.rgb", s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, size, &result));
    CHECK(result.steps == 2 && result.guidance == 1.3F);
}

int main(int count, char **arguments)
{
    voice speech;
    if (count != 3)
        return 2;
    folder = arguments[2];
    pipeline = open_cpu(arguments[1]);
    s2f_result_init(&result);
    s2f_request_init(&request);
    request.seed = 7;
    EXPECT(S2F_OK, s2f_info(pipeline, &result));
    size = result.bytes_needed;
    CHECK(size == (size_t)result.width * (size_t)result.height * 3 && result.steps == 4);
    image = malloc(size);
    result.bytes_needed = 0;
    EXPECT(S2F_OK, s2f_generate(pipeline, NULL, 0, 0, 0, NULL, NULL, 0, &result));
    CHECK(result.bytes_needed == size && result.total_ms == 0);
    speech = read_voice(in_folder("voice.f32"));
    draw_all(speech, read_voice(in_folder("stereo.f32")), read_voice(in_folder("voice.i16")));
    EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, &request, image, size, &result));
    png();
    request.steps = 0;
    batch(speech);
    EXPECT(S2F_OK, s2f_generate(pipeline, speech.pcm, speech.frames, RATE, 1, NULL, image, size, NULL));
    EXPECT(S2F_OK, s2f_close(pipeline));
    return failures != 0;
}
