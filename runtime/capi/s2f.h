/* s2f.h - speech in, portrait out.
 *
 *     s2f_pipeline *pipeline;
 *     s2f_result result;
 *     s2f_result_init(&result);
 *     if (s2f_open(NULL, NULL, &pipeline) != S2F_OK)
 *         fail(s2f_last_error());
 *     s2f_info(pipeline, &result);
 *     uint8_t *image = malloc(result.bytes_needed);
 *     s2f_generate(pipeline, pcm, frames, 48000, 1, NULL, image, result.bytes_needed, &result);
 *     s2f_close(pipeline);
 *
 * A voice does not determine a face. The output is a plausible portrait drawn by a model; it shows no real person and
 * identifies nobody. Files made by s2f_encode_png say that they were generated.
 *
 * ERRORS. A function that can fail returns a code of s2f_code; the text of the last failure of the calling thread is
 * s2f_last_error(). A code never changes its meaning in later releases; treat an unknown one as S2F_UNEXPECTED. Where
 * a call fails, the caller's memory is as it was before, but for what the function says. Nothing here ends the process,
 * writes to stdout or stderr, or lets an exception pass. A NULL pointer is answered with S2F_INVALID_ARGUMENT wherever
 * the function does not say that it may be NULL.
 *
 * THREADS. Every function may be called on any thread, and on several at once. Calls that draw on one pipeline wait for
 * each other; two pipelines draw side by side. A thread needs 1 MiB of stack for s2f_open, 256 KiB for the rest. The
 * threads this library starts have all asynchronous signals blocked, and s2f_open and s2f_stream_open hold them back in
 * the calling thread while they run, so that a signal handler of the program runs in the program's threads only. Signal
 * dispositions, locale and working directory are left alone; so is the environment, but for ORT_DISABLE_TELEMETRY, which
 * the first s2f_open sets to 1 where it is not set: without it ONNX Runtime reports its use over the network.
 *
 * LIFETIME. Everything given to a function is read or written during the call and not kept, but for the log function.
 * The library works for a whole process: it is not unloaded by dlclose. A program may end without closing anything, also
 * while other threads are in the midst of a call: from then on every new call gets S2F_CLOSED, what is being drawn is
 * given up within one step, and exit waits for it, 3 seconds at most (always so long where a progress function on a GPU
 * calls exit). Only while the first s2f_open of a process (or the
 * first for a device) is loading libraries must the program not end: nobody can wait for those.
 * A process made by fork after the first s2f_open must not use it: it gets S2F_BACKEND_FAILED there, until it executes
 * another program.
 *
 * STRUCTURES. Fill one with its s2f_*_init function, then set what you need. struct_size tells the library which fields
 * your program knows: programs compiled against older and newer versions of this header keep working. A field the
 * program does not have takes its default; one the library does not know is left alone. S2F_INVALID_ARGUMENT for a
 * struct_size that cannot be one.
 *
 * CALLBACKS must return: no longjmp, no C++ exception may leave them. The library holds no lock of its own while one
 * runs, but the pipeline is busy in a progress function: what draws on it or closes it from within gives
 * S2F_INVALID_ARGUMENT instead of waiting for itself. A callback must not wait for another thread that uses or closes
 * the same pipeline.
 *
 * Text is UTF-8; a path is the bytes the system knows it by. Seconds, milliseconds and Hz are named in each field.
 */
#ifndef S2F_H
#define S2F_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define S2F_API __attribute__((visibility("default")))
#else
#define S2F_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when a function or a field is added. What was there before stays as it was. */
#define S2F_ABI_VERSION 1

/* Handles. Never dereferenced: each call looks up what they stand for, so that one which is closed gives S2F_CLOSED,
 * and any other pointer S2F_INVALID_ARGUMENT. A handle is not used a second time. */
typedef struct s2f_pipeline s2f_pipeline;
typedef struct s2f_stream s2f_stream;

typedef enum s2f_code {
    S2F_OK = 0,
    S2F_UNEXPECTED = 1,        /* nothing foreseen, lack of memory included: please report it with its message */
    S2F_INVALID_ARGUMENT = 10, /* a pointer, number or name that cannot be */
    S2F_STEPS_UNAVAILABLE = 11, /* the bundle has no table for that many steps */
    S2F_BUFFER_TOO_SMALL = 13,  /* the result says how many bytes are needed */
    S2F_AUDIO_NOT_FOUND = 20,
    S2F_AUDIO_UNREADABLE = 21, /* no sound file, damaged, or a sample rate outside 1000..384000 Hz */
    S2F_AUDIO_SILENT = 22,
    S2F_AUDIO_TOO_SHORT = 23,  /* less than half a second of signal */
    S2F_AUDIO_NON_FINITE = 24, /* NaN or infinite samples */
    S2F_BUNDLE_NOT_FOUND = 30,
    S2F_BUNDLE_INVALID = 31,
    S2F_BUNDLE_TAMPERED = 32, /* a file is not the one the manifest was written for */
    S2F_BUNDLE_VERSION = 33,
    S2F_BACKEND_MISSING = 40, /* something is not installed; the message says what to install, and how */
    S2F_DEVICE_UNAVAILABLE = 41,
    S2F_BACKEND_FAILED = 42,       /* the backend refused a graph or failed; also: used after a fork */
    S2F_NOT_PREPARED = 43,         /* the device needs `s2f prepare` first */
    S2F_DEVICE_OUT_OF_MEMORY = 44,
    S2F_OUTPUT_UNWRITABLE = 50,
    S2F_CONFIG_INVALID = 60,       /* 60 to 70 are of training and export, and not returned here */
    S2F_CORPUS_INVALID = 61,
    S2F_CHECKPOINT_INVALID = 62,
    S2F_TRAINING_DIVERGED = 63,
    S2F_PARITY_FAILED = 70,
    S2F_GATE_MISSED = 71,
    S2F_CLOSED = 80,    /* the pipeline or stream was closed before, or the process is ending */
    S2F_CANCELLED = 81, /* the progress function asked for it, or the process is ending */
    S2F_TIMED_OUT = 82,
    S2F_SLOWER = 90,    /* 90 and 91 are of s2f bench, and not returned here */
    S2F_NOT_JUDGED = 91
} s2f_code;

/* Called before the first denoising step and after each, with the steps done and those in all. Non-zero ends the call
 * with S2F_CANCELLED before the next step; nothing is drawn then. A device that draws a whole portrait at once tells of
 * whole portraits only. Called by the thread that draws, which on a GPU is not the caller's; one call after the other,
 * and never after the function it was given to has returned. */
typedef int32_t (*s2f_progress_fn)(int32_t done, int32_t total, void *user);

/* A message of the library. level: 10 debug, 20 info, 30 warning, 40 error. message: one text, valid during the call.
 * Called on the thread of a call of this library with that pipeline or its stream, before the call returns: what
 * happened in a background thread is told by the next call. At most 256 messages wait; the oldest give way. Never
 * called after s2f_close has returned, nor after s2f_open has failed. */
typedef void (*s2f_log_fn)(int32_t level, const char *message, void *user);

/* How to open a bundle. */
typedef struct s2f_options {
    size_t struct_size;
    const char *device; /* "cpu", "openvino", "cuda", "tensorrt" (after `s2f prepare`) or "auto": the best that works,
                         * openvino only where `s2f prepare` has measured that it is; NULL: auto */
    int32_t threads;    /* CPU threads per graph, 1..256; 0: the physical cores this process may use */
    s2f_log_fn log;     /* NULL: no messages */
    void *log_user;     /* handed to log */
    int32_t log_level;  /* the lowest level told; 0: 30, warnings and errors */
    const char *precision; /* "fp32", "bf16", "fp16", "int8" or "auto": eight bits where the bundle has a variant that
                            * passed its gate and the processor is made for it; NULL: auto */
} s2f_options;

/* What to draw. */
typedef struct s2f_request {
    size_t struct_size;
    int64_t seed;       /* 0..2^63-1; the same call gives the same bytes on one machine */
    int32_t steps;      /* one of the bundle's step tables; 0: its default */
    float guidance;     /* how much the voice counts, within the bundle's range; NaN: its default */
    float prior_weight; /* how much the average face counts, within the bundle's range; NaN: its default */
    const char *window; /* which six seconds of longer speech: "start", "centre", "loudest"; NULL: start */
    uint32_t timeout_ms; /* for the whole call, waiting for others included; looked at when the speech has been read, and
                            between two steps. 0: no limit */
    s2f_progress_fn progress; /* NULL: not told */
    void *progress_user;      /* handed to progress */
} s2f_request;

/* What was drawn, written by the library. */
typedef struct s2f_result {
    size_t struct_size;
    int32_t width;  /* pixels */
    int32_t height; /* pixels */
    size_t bytes_needed; /* of the image buffer: width x height x 3, times count in s2f_generate_batch */
    int64_t seed;        /* the values really used: */
    int32_t steps;
    float guidance;
    float prior_weight;
    double audio_ms;  /* reading, resampling, window */
    double graphs_ms; /* the model */
    double total_ms;  /* the whole call, waiting for others included; portraits of a batch share the three */
} s2f_result;

/* How a stream listens and draws. */
typedef struct s2f_stream_options {
    size_t struct_size;
    int32_t sample_rate; /* of what will be pushed, 1000..384000 Hz; 0: 16000 */
    int32_t channels;    /* of what will be pushed, 1..64, interleaved; 0: 1 */
    int64_t seed;        /* as in s2f_request, for all portraits of the stream */
    int32_t steps;
    float guidance;
    float prior_weight;
    double max_backlog_s; /* seconds of speech that may wait while something else is drawn, 1..600; more is dropped as
                             it arrives. 0: 30 */
    const char *vad;      /* what tells speech from other sound: "energy", or the path of silero's ONNX file; NULL: energy */
} s2f_stream_options;

/* What a stream has heard and drawn, written by the library. */
typedef struct s2f_stream_state {
    size_t struct_size;
    double heard_s;    /* seconds of sound pushed */
    double speech_s;   /* seconds of speech found in it and kept */
    double dropped_s;  /* seconds of speech dropped, because max_backlog_s of it waited already */
    double portrait_s; /* seconds of speech behind the portrait that was given last; 0 before */
    double first_portrait_s;  /* seconds of sound from the beginning of speech until there was enough; NaN before */
    double first_portrait_ms; /* from that push until the portrait could be polled; NaN before */
} s2f_stream_state;

/* S2F_ABI_VERSION of the library that is loaded, which may be newer than this header. Cannot fail. */
S2F_API uint32_t s2f_abi_version(void);

/* The library's release, such as "0.1.0". Static memory. Cannot fail. */
S2F_API const char *s2f_version(void);

/* One sentence on what a code means. Static memory, never NULL, also for an unknown code. Cannot fail. */
S2F_API const char *s2f_strerror(int32_t code);

/* What went wrong in the last call of this thread, where, and what to do next; "" after a call that went well. Never
 * NULL. Valid until this thread's next call of a function that returns a code. Texts may change between releases. */
S2F_API const char *s2f_last_error(void);

/* Fill a structure with defaults and its struct_size. NULL is ignored. Cannot fail. */
S2F_API void s2f_options_init(s2f_options *options);
S2F_API void s2f_request_init(s2f_request *request);
S2F_API void s2f_result_init(s2f_result *result);
S2F_API void s2f_stream_options_init(s2f_stream_options *options);
S2F_API void s2f_stream_state_init(s2f_stream_state *state);

/* Read, verify and open a bundle.
 *
 * bundle:   its folder; NULL: the demo bundle that ships with the package.
 * options:  NULL: all defaults.
 * pipeline: set to a new handle, which the caller owns and gives to s2f_close; set to NULL where the call fails.
 *
 * The first call of a process takes a moment longer; calls on other threads wait for that part. Fails with the
 * S2F_BUNDLE_* codes, S2F_BACKEND_MISSING, S2F_BACKEND_FAILED, S2F_DEVICE_UNAVAILABLE, S2F_DEVICE_OUT_OF_MEMORY,
 * S2F_NOT_PREPARED, S2F_INVALID_ARGUMENT. */
S2F_API int32_t s2f_open(const char *bundle, const s2f_options *options, s2f_pipeline **pipeline);

/* Size of a portrait (width, height, bytes_needed) and the bundle's defaults (steps, guidance, prior_weight). On any
 * thread; does not wait for a call that draws. Fails with S2F_INVALID_ARGUMENT, S2F_CLOSED. */
S2F_API int32_t s2f_info(s2f_pipeline *pipeline, s2f_result *result);

/* Draw a portrait for speech in memory.
 *
 * pcm:         frames x channels samples, interleaved, -1..1 (larger ones are scaled down by their peak). Channels are
 *              mixed by their mean. Shorter speech than six seconds is repeated, of longer speech a window is used.
 * frames:      samples per channel; half a second of signal at least.
 * sample_rate: 1000..384000 Hz.
 * channels:    1..256.
 * request:     NULL: all defaults.
 * image:       receives height rows of width pixels of red, green, blue, one byte each, top to bottom, without gaps;
 *              untouched where the call fails.
 * image_bytes: size of the whole buffer.
 * result:      receives what was drawn; NULL: not wanted.
 *
 * On any thread; waits while another call draws on the same pipeline, and its timeout runs meanwhile.
 *
 * image NULL and image_bytes 0 asks for the size: result (not NULL then) is filled as by s2f_info, the speech is not
 * looked at, and nothing is drawn. S2F_BUFFER_TOO_SMALL fills result in the same way. Other failures leave it alone:
 * the S2F_AUDIO_* codes, S2F_INVALID_ARGUMENT, S2F_STEPS_UNAVAILABLE, S2F_CANCELLED, S2F_TIMED_OUT, S2F_BACKEND_FAILED,
 * S2F_DEVICE_OUT_OF_MEMORY, S2F_BACKEND_MISSING (the resampler), S2F_CLOSED. */
S2F_API int32_t s2f_generate(s2f_pipeline *pipeline, const float *pcm, size_t frames, int32_t sample_rate,
                             int32_t channels, const s2f_request *request, uint8_t *image, size_t image_bytes,
                             s2f_result *result);

/* The same for 16-bit samples, -32768..32767. */
S2F_API int32_t s2f_generate_i16(s2f_pipeline *pipeline, const int16_t *pcm, size_t frames, int32_t sample_rate,
                                 int32_t channels, const s2f_request *request, uint8_t *image, size_t image_bytes,
                                 s2f_result *result);

/* The same for a sound file: WAV, FLAC, OGG, MP3 of any length; only what is needed of it is decoded. */
S2F_API int32_t s2f_generate_file(s2f_pipeline *pipeline, const char *path, const s2f_request *request, uint8_t *image,
                                  size_t image_bytes, s2f_result *result);

/* Draw count portraits, one per speech, together. If one speech is bad the call fails as a whole.
 *
 * pcm, frames: count pointers and count lengths, each as in s2f_generate; all of one sample rate and channel count.
 * count:       1..10000. Memory is needed for all of them at once.
 * request:     its seed is that of the first portrait; the others take seed + 1, seed + 2, ...
 * images:      receives the portraits one after the other; image_bytes is the size of the whole buffer.
 * results:     count of them, each initialised; NULL: not wanted.
 *
 * Threads, size query and failures as in s2f_generate. */
S2F_API int32_t s2f_generate_batch(s2f_pipeline *pipeline, const float *const *pcm, const size_t *frames, size_t count,
                                   int32_t sample_rate, int32_t channels, const s2f_request *request, uint8_t *images,
                                   size_t image_bytes, s2f_result *results);

/* Make a PNG file in memory of a portrait, with the mark that says it was generated, by which bundle and how.
 *
 * image, result: as a call that draws wrote them; of result the size, seed, steps, guidance and prior_weight count.
 * png:           receives the file; png_bytes is the size of the buffer.
 * needed:        receives the size of the file, also with S2F_BUFFER_TOO_SMALL.
 *
 * On any thread; does not wait for a call that draws.
 *
 * png NULL and png_bytes 0 asks for the size. A buffer of bytes_needed + 65536 is always large enough, and saves
 * encoding twice. Fails with S2F_INVALID_ARGUMENT, S2F_BUFFER_TOO_SMALL, S2F_BACKEND_MISSING, S2F_CLOSED. */
S2F_API int32_t s2f_encode_png(s2f_pipeline *pipeline, const uint8_t *image, const s2f_result *result, uint8_t *png,
                               size_t png_bytes, size_t *needed);

/* Close a pipeline and its streams, and give memory and threads back. Waits for calls in progress with them on other
 * threads; new ones get S2F_CLOSED from the moment this is called. The handle is invalid afterwards, also where a code
 * says that something went wrong. Only from a callback of the same pipeline nothing is closed: S2F_INVALID_ARGUMENT. */
S2F_API int32_t s2f_close(s2f_pipeline *pipeline);

/* Open a stream: speech is pushed in pieces as it arrives, a first portrait appears after about a second of it, and is
 * refined as more arrives. The noise stays the same, so that the face settles rather than jumps.
 *
 * options: NULL: all defaults.
 * stream:  set to a new handle, which the caller owns and gives to s2f_stream_close; NULL where the call fails.
 *
 * On any thread. A pipeline may have several streams, and draw beside them; all take turns, one window of speech or one
 * portrait at a time. Fails with S2F_INVALID_ARGUMENT, S2F_STEPS_UNAVAILABLE, S2F_BACKEND_MISSING (the resampler, or
 * ONNX Runtime for vad), S2F_BACKEND_FAILED, S2F_CLOSED. */
S2F_API int32_t s2f_stream_open(s2f_pipeline *pipeline, const s2f_stream_options *options, s2f_stream **stream);

/* Hand over samples, interleaved, any number of frames; 0 is harmless, and pcm may be NULL then. Floats lie within -1..1;
 * beyond 32768 they are refused. Copied before it returns. Speech beyond max_backlog_s is dropped, see s2f_stream_info.
 *
 * On any thread; does not wait for a portrait that is drawn, only for another push into the same stream. A call that
 * fails has taken no sample: S2F_INVALID_ARGUMENT, S2F_AUDIO_NON_FINITE, S2F_BACKEND_FAILED (vad), S2F_CLOSED. */
S2F_API int32_t s2f_stream_push(s2f_stream *stream, const float *pcm, size_t frames);
S2F_API int32_t s2f_stream_push_i16(s2f_stream *stream, const int16_t *pcm, size_t frames);

/* Take the newest portrait, if there is one that was not taken before.
 *
 * image, image_bytes, result: as in s2f_generate, the size query included, which takes nothing.
 * fresh: receives 1 if a portrait was written, 0 if there is none and image and result are as they were.
 *
 * On any thread; never waits for a portrait. Too small a buffer loses nothing. Fails with S2F_BUFFER_TOO_SMALL,
 * S2F_INVALID_ARGUMENT, S2F_CLOSED, and once with what went wrong while a portrait was drawn, which is tried again as
 * more speech arrives. */
S2F_API int32_t s2f_stream_poll(s2f_stream *stream, uint8_t *image, size_t image_bytes, s2f_result *result,
                                int32_t *fresh);

/* What a stream has heard and drawn. On any thread; waits for nothing. Fails with S2F_INVALID_ARGUMENT, S2F_CLOSED. */
S2F_API int32_t s2f_stream_info(s2f_stream *stream, s2f_stream_state *state);

/* No more samples come: wait for the portrait of all the speech there was. Later pushes get S2F_CLOSED.
 *
 * timeout_ms: for the whole call; 0: no limit. After S2F_TIMED_OUT it may be called again.
 * image, image_bytes, result: as in s2f_generate; image is not NULL here.
 *
 * On any thread but in a progress function of the pipeline. Fails with S2F_AUDIO_SILENT without speech,
 * S2F_AUDIO_TOO_SHORT below half a second of it, S2F_TIMED_OUT, S2F_BUFFER_TOO_SMALL, S2F_INVALID_ARGUMENT, S2F_CLOSED,
 * and with what went wrong while the portrait was drawn. */
S2F_API int32_t s2f_stream_finish(s2f_stream *stream, uint32_t timeout_ms, uint8_t *image, size_t image_bytes,
                                  s2f_result *result);

/* Close a stream, on any thread. As s2f_close: waits for calls in progress with it; a portrait that is being drawn is
 * given up within one step. */
S2F_API int32_t s2f_stream_close(s2f_stream *stream);

#ifdef __cplusplus
}
#endif

#endif
