/* A face for a call without video: hears somebody speak, 20 ms at a time, and draws what it has heard so far.

   The first portrait comes after about a second of speech; as more is heard the same face settles. Each newer portrait
   replaces the file, whole, so that whatever shows it never sees half a picture. */
#define _POSIX_C_SOURCE 200809L

#include "support.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_ALSA
#include <alsa/asoundlib.h>
#define MICROPHONE "alsa:"
#define CARD_LATENCY_US 500000 /* what the card holds while this program is busy with a portrait */
#endif

#define PIECES_PER_SECOND 50
#define LAST_WAIT_MS 10000 /* after the end of the source, for the portrait of all that was said */

static const char help[] =
    "Usage: conference [OPTIONS] --raw RATE CHANNELS [--i16 | --f32] SOURCE OUT.png\n"
    "\n"
    "Draws whoever speaks into OUT.png, and again whenever more has been heard, until the source ends or a signal\n"
    "(Ctrl-C) comes. SOURCE: - for stdin, samples interleaved in the byte order of this machine"
#ifdef WITH_ALSA
    "; or alsa:DEVICE,\na microphone as arecord -L lists them, such as alsa:default"
#endif
    ".\n"
    "\n"
    "  --raw RATE CHANNELS   samples per second and channels of the source\n"
    "  --i16, --f32          how they are written: 16-bit integers (default) or 32-bit floats\n"
    "  --paced               take stdin at the speed of speech, as if it came from a microphone\n"
    "  --vad FILE            silero's ONNX file, to tell speech from music and beeps too; default: by energy and pitch\n"
    "  --seed S              same seed and speech, same portraits (default 0)\n"
    "  --steps N             denoising steps, one of the bundle's; default: the bundle's\n"
    "  --bundle DIR          folder of the bundle; default: the shipped demo\n"
    "  --device D            auto (default), cpu, openvino, cuda, tensorrt\n"
    "  --threads N           CPU threads; default: the physical cores usable here\n"
    "\n"
    "Exit status: 0, also after a signal, or the code of the error shown in brackets; 2 for a command line that cannot\n"
    "be read.\n"
    "\n" RESPECT;

typedef struct settings {
    s2f_options options;
    s2f_stream_options stream;
    const char *bundle, *words[2]; /* words: source, output */
    raw_format format;
    int64_t paced;
} settings;

/* Where samples come from, and what has come of it so far. */
typedef struct source {
    raw_format format;
    void *piece; /* room for `frames` frames, 20 ms */
    size_t frames;
    double heard_s, begin_s; /* begin_s: when the first sound was, on the monotonic clock */
    int paced;
#ifdef WITH_ALSA
    snd_pcm_t *card;
    int overruns;
#endif
} source;

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void sleep_until(double when_s)
{
    double left = when_s - now_s();
    if (left > 0) {
        struct timespec rest = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
        nanosleep(&rest, NULL); /* a signal ends it early, which is what it is for */
    }
}

/* Returns 0, or USAGE. */
static int read_settings(int argc, char **argv, settings *set)
{
    int64_t raw[2] = {0, 0}, i16 = 0, f32 = 0, seed = 0, steps = 0, threads = 0;
    const option options[] = {
        {"--raw", raw, 2, 1, 384000, NULL},
        {"--i16", &i16, 0, 0, 0, NULL},
        {"--f32", &f32, 0, 0, 0, NULL},
        {"--paced", &set->paced, 0, 0, 0, NULL},
        {"--vad", NULL, 0, 0, 0, &set->stream.vad},
        {"--seed", &seed, 1, 0, INT64_MAX, NULL},
        {"--steps", &steps, 1, 1, INT32_MAX, NULL},
        {"--bundle", NULL, 0, 0, 0, &set->bundle},
        {"--device", NULL, 0, 0, 0, &set->options.device},
        {"--threads", &threads, 1, 1, INT32_MAX, NULL},
        {NULL, NULL, 0, 0, 0, NULL},
    };
    int status = read_options(argc, argv, options, set->words, 2);
    if (status != 0) {
        return status;
    }
    if (raw[0] < PIECES_PER_SECOND || (i16 && f32)) {
        fprintf(stderr, "conference: --raw RATE CHANNELS is needed, with one of --i16 and --f32. Try --help.\n");
        return USAGE;
    }
    set->format = (raw_format){(int32_t)raw[0], (int32_t)raw[1], f32 != 0};
    set->options.threads = (int32_t)threads;
    set->stream.sample_rate = set->format.rate;
    set->stream.channels = set->format.channels;
    set->stream.seed = seed;
    set->stream.steps = (int32_t)steps;
    return 0;
}

#ifdef WITH_ALSA
static int32_t open_card(source *from, const char *device)
{
    snd_pcm_format_t samples = from->format.floats ? SND_PCM_FORMAT_FLOAT : SND_PCM_FORMAT_S16;
    int status = snd_pcm_open(&from->card, device, SND_PCM_STREAM_CAPTURE, 0);
    if (status == 0) {
        status = snd_pcm_set_params(from->card, samples, SND_PCM_ACCESS_RW_INTERLEAVED,
                                    (unsigned)from->format.channels, (unsigned)from->format.rate, 1, CARD_LATENCY_US);
    }
    if (status == 0) {
        status = snd_pcm_start(from->card); /* a bare card would wait for a read as long as its buffer */
    }
    return status == 0 ? S2F_OK
                       : fail(S2F_AUDIO_UNREADABLE, "the microphone %s: %s", device, snd_strerror(status));
}

/* Frames of the next piece; 0 when interrupted, (size_t)-1 where the card fails for good (reported). */
static size_t read_card(source *from)
{
    size_t done = 0;
    while (done < from->frames && !interrupted()) {
        char *at = (char *)from->piece + done * frame_bytes(&from->format);
        snd_pcm_sframes_t got = snd_pcm_readi(from->card, at, from->frames - done);
        if (got >= 0) {
            done += (size_t)got;
            continue;
        }
        from->overruns += got == -EPIPE; /* this program was too slow; what was said meanwhile is lost */
        int status = snd_pcm_recover(from->card, (int)got, 1);
        if (status == 0 && snd_pcm_state(from->card) == SND_PCM_STATE_PREPARED) {
            status = snd_pcm_start(from->card);
        }
        if (status < 0) {
            fail(S2F_AUDIO_UNREADABLE, "the microphone: %s", snd_strerror(status));
            return (size_t)-1;
        }
    }
    return interrupted() ? 0 : done;
}
#endif

/* Returns an s2f code; an error has been reported. */
static int32_t open_source(source *from, const settings *set)
{
    memset(from, 0, sizeof *from);
    from->format = set->format;
    from->paced = set->paced != 0;
    from->frames = (size_t)(set->format.rate / PIECES_PER_SECOND);
    from->piece = malloc(from->frames * frame_bytes(&set->format));
    if (from->piece == NULL) {
        return fail(S2F_UNEXPECTED, "out of memory");
    }
#ifdef WITH_ALSA
    if (strncmp(set->words[0], MICROPHONE, strlen(MICROPHONE)) == 0) {
        return open_card(from, set->words[0] + strlen(MICROPHONE));
    }
#endif
    if (strcmp(set->words[0], "-") != 0) {
        return fail(S2F_AUDIO_NOT_FOUND, "there is no source %s; --help lists those of this build", set->words[0]);
    }
    return S2F_OK;
}

/* Frames of the next piece; 0 at the end and when interrupted, (size_t)-1 for a failure (reported). */
static size_t read_piece(source *from)
{
    size_t frames;
#ifdef WITH_ALSA
    if (from->card != NULL) {
        frames = read_card(from);
    } else
#endif
    {
        frames = read_fully(STDIN_FILENO, from->piece, from->frames * frame_bytes(&from->format));
        if (frames == (size_t)-1) {
            fail(S2F_AUDIO_UNREADABLE, "stdin cannot be read: %s", strerror(errno));
            return frames;
        }
        frames /= frame_bytes(&from->format);
    }
    if (frames != (size_t)-1) {
        if (from->heard_s == 0) {
            from->begin_s = now_s() - (from->paced ? 0 : (double)frames / from->format.rate);
        }
        from->heard_s += (double)frames / from->format.rate;
        if (from->paced) {
            sleep_until(from->begin_s + from->heard_s);
        }
    }
    return frames;
}

static void close_source(source *from)
{
#ifdef WITH_ALSA
    if (from->overruns > 0) {
        fprintf(stderr, "conference: the card overran %d times\n", from->overruns);
    }
    if (from->card != NULL) {
        snd_pcm_close(from->card);
        snd_config_update_free_global();
    }
#endif
    free(from->piece);
}

/* Room for the newest portrait, and what has been seen of it. */
typedef struct viewer {
    s2f_stream *stream;
    s2f_pipeline *pipeline;
    uint8_t *image;
    s2f_result result;
    size_t size;
    int portraits;
} viewer;

static int32_t push(s2f_stream *stream, const source *from, size_t frames)
{
    return from->format.floats ? s2f_stream_push(stream, from->piece, frames)
                               : s2f_stream_push_i16(stream, from->piece, frames);
}

/* Writes the portrait in view. Returns an s2f code; an error has been reported. */
static int32_t show(viewer *view, const source *from, const char *path)
{
    view->portraits++;
    printf("%s  portrait %d: after %.2f s of sound, %.2f s after the first\n", path, view->portraits, from->heard_s,
           now_s() - from->begin_s);
    fflush(stdout);
    return save_portrait(view->pipeline, view->image, &view->result, path);
}

/* Shows the newest portrait if there is one. What went wrong with one is reported, and the next may be better: a stream
   goes on after it, and a full disk may be emptied. */
static void look(viewer *view, const source *from, const char *path)
{
    int32_t fresh = 0;
    int32_t code = s2f_stream_poll(view->stream, view->image, view->size, &view->result, &fresh);
    if (code != S2F_OK) {
        report(code);
    } else if (fresh) {
        show(view, from, path);
    }
}

/* Shows the portrait of all that was said. Returns an s2f code; an error has been reported. */
static int32_t look_at_last(viewer *view, const source *from, const char *path)
{
    int32_t code = s2f_stream_finish(view->stream, LAST_WAIT_MS, view->image, view->size, &view->result);
    if (code == S2F_AUDIO_SILENT || code == S2F_AUDIO_TOO_SHORT) {
        fprintf(stderr, "conference: %.2f s of sound held too little speech for a portrait\n", from->heard_s);
        return S2F_OK;
    }
    return code == S2F_OK ? show(view, from, path) : report(code);
}

/* Pieces in, portraits out, until the source ends. Returns an s2f code; an error has been reported. */
static int32_t listen(viewer *view, source *from, const char *path)
{
    size_t frames = 0;
    while ((frames = read_piece(from)) > 0) {
        if (frames == (size_t)-1) {
            return S2F_AUDIO_UNREADABLE;
        }
        int32_t code = push(view->stream, from, frames);
        if (code == S2F_CLOSED) {
            return report(code);
        }
        if (code != S2F_OK) {
            report(code); /* such as a NaN: this piece is left out */
        }
        look(view, from, path);
    }
    return interrupted() ? S2F_OK : look_at_last(view, from, path);
}

/* Between opening and closing the pipeline. Returns an s2f code; an error has been reported. */
static int32_t converse(s2f_pipeline *pipeline, const settings *set, source *from)
{
    viewer view;
    memset(&view, 0, sizeof view);
    view.pipeline = pipeline;
    s2f_result_init(&view.result);
    int32_t code = s2f_info(pipeline, &view.result);
    if (code == S2F_OK) {
        code = s2f_stream_open(pipeline, &set->stream, &view.stream);
    }
    if (code != S2F_OK) {
        return report(code);
    }
    view.size = view.result.bytes_needed;
    view.image = malloc(view.size);
    code = view.image == NULL ? fail(S2F_UNEXPECTED, "out of memory") : listen(&view, from, set->words[1]);
    free(view.image);
    s2f_stream_close(view.stream);
    return code;
}

int main(int argc, char **argv)
{
    program = "conference";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            return fputs(help, stdout) == EOF;
        }
    }
    settings set;
    memset(&set, 0, sizeof set);
    s2f_options_init(&set.options);
    s2f_stream_options_init(&set.stream);
    int status = check_library();
    status = status == 0 ? read_settings(argc, argv, &set) : status;
    if (status != 0) {
        return status;
    }
    catch_signals();

    source from;
    s2f_pipeline *pipeline = NULL;
    int32_t code = open_source(&from, &set);
    if (code == S2F_OK && (code = s2f_open(set.bundle, &set.options, &pipeline)) != S2F_OK) {
        report(code);
    }
    if (code == S2F_OK) {
        code = converse(pipeline, &set, &from);
        s2f_close(pipeline);
    }
    close_source(&from);
    return code;
}
