/* What benchmarks/capi.py and tests/sanitize.sh run against libs2f: calls, one after the other or beside each other,
   with a line per call on stdout. POSIX, C99: cc *.c -ls2f -pthread

   capi_driver MODE BUNDLE SPEECH STEPS THREADS COUNT [WORKERS]
     SPEECH: float32 samples, 16 kHz mono, in the machine's byte order; STEPS 0: the bundle's; THREADS 0: the default
     start    opens, draws and closes; prints "open MS", "first MS", "close MS", and "rss PIPELINES KIB" before the first,
              with one and with two that have drawn
     rounds   reads numbers from stdin and makes that many calls for each; prints "WALL_MS TOTAL_MS" per call
     soak     COUNT calls with seeds 0, 1, …; prints "WALL_MS", and "rss CALLS KIB" COUNT / 100 calls apart
     cancel   COUNT calls, each cancelled at another moment; prints "step MS" per step of an uncancelled call, then
              "LATE_MS CODE": from the wish to the return
     stream   COUNT pieces of 20 ms at the speed of speech; prints "push MS" and "poll MS" for each, "portrait SOUND_S"
     hours    COUNT pieces as fast as they are taken; prints "rss PIECES KIB" COUNT / 100 pieces apart
     cycles   COUNT times open, generate, encode, stream, close
     threads  WORKERS threads with COUNT calls each, half on a shared pipeline, half on their own; prints "equal" */
#define _POSIX_C_SOURCE 200809L

#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int read_speech(const char *path, job *work)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        return -1;
    }
    long bytes = ftell(file);
    rewind(file);
    work->frames = bytes < 0 ? 0 : (size_t)bytes / sizeof(float);
    work->pcm = malloc(work->frames * sizeof(float) + 1);
    int good = work->pcm != NULL && work->frames >= PIECE && fread(work->pcm, sizeof(float), work->frames, file) == work->frames;
    fclose(file);
    return good ? 0 : -1;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int32_t (*run)(const job *);
    } modes[] = {{"start", run_start},   {"rounds", run_rounds}, {"soak", run_soak},
                 {"cancel", run_cancel}, {"stream", run_stream}, {"hours", run_hours},
                 {"cycles", run_cycles}, {"threads", run_threads}};
    job work;
    memset(&work, 0, sizeof work);
    if (argc < 7 || read_speech(argv[3], &work) != 0) {
        fputs("capi_driver MODE BUNDLE SPEECH STEPS THREADS COUNT [WORKERS]\n", stderr);
        free(work.pcm);
        return 2;
    }
    work.bundle = argv[2];
    work.steps = (int32_t)strtol(argv[4], NULL, 10);
    work.threads = (int32_t)strtol(argv[5], NULL, 10);
    work.count = strtol(argv[6], NULL, 10);
    work.workers = argc > 7 ? strtol(argv[7], NULL, 10) : 1;
    int32_t code = 2;
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(modes[i].name, argv[1]) == 0) {
            code = modes[i].run(&work);
        }
    }
    free(work.pcm);
    return code;
}
